//! What the benches share: the devices, the clock, and a copy to compare with.

use std::time::{Duration, Instant};

use collimate::{Device, Element, Plain, Real, Result, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use rayon::prelude::*;

/// Buffers that a case goes through in turn hold as much together: three times the largest cache.
const PAST_CACHES: usize = 192 << 20;

/// Set, an emulated GPU is taken for one, at sizes that it can do: what is printed is right but for its times.
const REHEARSE: &str = "COLLIMATE_REHEARSE";

/// The devices that are measured.
pub fn devices() -> Vec<Device> {
    let mut devices = vec![Device::Cpu];
    match Device::cuda(0) {
        Ok(_) if cfg!(feature = "emulate") && std::env::var_os(REHEARSE).is_none() => {
            println!("not measured on a GPU: this build emulates one");
        }
        Ok(gpu) => devices.push(gpu),
        Err(error) => {
            println!("not measured on a GPU: {error}");
            // a run that is there to measure a GPU
            if std::env::var_os("COLLIMATE_GPU").is_some_and(|x| x == "require") {
                std::process::exit(1);
            }
        }
    }
    devices
}

/// A device, and what its copy reaches.
pub struct Bench<'a> {
    criterion: &'a mut Criterion,
    device: Device,
    /// Bytes a second, read and written; measured where it is first asked for.
    copy: Option<f64>,
}

impl<'a> Bench<'a> {
    /// Measurements on `device`.
    pub fn new(criterion: &'a mut Criterion, device: Device) -> Self {
        Bench { criterion, device, copy: None }
    }

    /// Where the cases run.
    pub fn device(&self) -> Device {
        self.device.clone()
    }

    /// Whether that is a GPU.
    pub fn on_gpu(&self) -> bool {
        self.device != Device::Cpu
    }

    /// A size: `full`, but at most `tiny` where the GPU is emulated.
    pub fn size(&self, full: usize, tiny: usize) -> usize {
        if cfg!(feature = "emulate") && self.on_gpu() { full.min(tiny) } else { full }
    }

    /// Measures what `setup` returns, a function of the number of the iteration that moves `bytes`.
    /// The set-up is done only where the case is asked for.
    pub fn case<R: FnMut(usize)>(
        &mut self,
        family: &str,
        case: &str,
        bytes: usize,
        setup: impl FnOnce() -> R,
    ) {
        if let Some(seconds) = self.measure(family, case, Throughput::Bytes(bytes as u64), setup) {
            self.report(&format!("{family}/{}/{case}", short(&self.device)), bytes, seconds);
        }
    }

    /// [`Bench::case`] of an operation that is bound by arithmetic: `flops` of it.
    pub fn flops_case<R: FnMut(usize)>(
        &mut self,
        family: &str,
        case: &str,
        flops: usize,
        setup: impl FnOnce() -> R,
    ) {
        let throughput = Throughput::Elements(flops as u64);
        if let Some(seconds) = self.measure(family, case, throughput, setup) {
            let (name, rate) = (short(&self.device), flops as f64 / seconds);
            println!("{family}/{name}/{case}: {:.4} ms, {:.1} GFLOP/s", seconds * 1e3, rate / 1e9);
        }
    }

    /// The median of an iteration's seconds, where the case was asked for.
    fn measure<R: FnMut(usize)>(
        &mut self,
        family: &str,
        case: &str,
        throughput: Throughput,
        setup: impl FnOnce() -> R,
    ) -> Option<f64> {
        let device = self.device.clone();
        let mut group = self.criterion.benchmark_group(format!("{family}/{}", short(&device)));
        pace(&mut group, &device);
        group.throughput(throughput);
        let (mut setup, mut run) = (Some(setup), None);
        let (mut seconds, mut done) = (Vec::new(), 0);
        group.bench_function(case, |b| {
            let run = run.get_or_insert_with(|| setup.take().expect("taken once")());
            b.iter_custom(|iterations| {
                let spent = timed(&device, iterations, || {
                    run(done);
                    done += 1;
                });
                seconds.push(spent.as_secs_f64() / iterations as f64);
                spent
            });
        });
        group.finish();
        (!seconds.is_empty()).then(|| median(seconds))
    }

    fn report(&mut self, name: &str, bytes: usize, seconds: f64) {
        let copy = *self.copy.get_or_insert_with(|| copy_bandwidth(&self.device));
        let rate = bytes as f64 / seconds;
        println!(
            "{name}: {:.4} ms, {:.1} GB/s, {:.0}% of the copy's {:.1} GB/s",
            seconds * 1e3,
            rate / 1e9,
            100.0 * rate / copy,
            copy / 1e9
        );
    }
}

/// As many buffers as go past the caches where each case moves `bytes`, and one at least.
pub fn rotated<T>(bytes: usize, make: impl FnMut(usize) -> T) -> Vec<T> {
    (0..PAST_CACHES.div_ceil(bytes.max(1)).clamp(1, 64)).map(make).collect()
}

/// `rows` rows on `device` that repeat `block`, which holds whole rows and is uploaded once.
pub fn repeated<T: Plain>(device: &Device, block: &Tensor<T>, rows: usize) -> Result<Tensor<T>> {
    let block = block.to_device(device)?;
    let mut out = Tensor::zeros(device, rows, block.cols())?;
    for start in (0..rows).step_by(block.rows()) {
        let count = block.rows().min(rows - start);
        let part = block.view().rows_range(0, count)?;
        out.view_mut().rows_range(start, count)?.copy_from(part)?;
    }
    device.synchronize()?;
    Ok(out)
}

/// Values from -1 to 1, the same in every run.
pub fn noise<T: Element>(device: &Device, rows: usize, cols: usize) -> Tensor<T> {
    let block = rows.min(64);
    let mut state = 1u64;
    let value = |_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::from_stat(T::Stat::of((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0))
    };
    let values = (0..block * cols).map(value).collect();
    let block = Tensor::from_vec(values, block, cols).expect("a shape");
    repeated(device, &block, rows).expect("memory")
}

/// A GPU's times spread little, and it may be there for minutes: a quarter of the time, and ten samples.
fn pace(group: &mut BenchmarkGroup<'_, WallTime>, device: &Device) {
    let (samples, milliseconds) = if *device == Device::Cpu { (20, 200) } else { (10, 50) };
    group.sample_size(samples).warm_up_time(Duration::from_millis(milliseconds));
    group.measurement_time(Duration::from_millis(4 * milliseconds)).nresamples(1001);
}

fn short(device: &Device) -> &'static str {
    if *device == Device::Cpu { "cpu" } else { "cuda" }
}

/// The time of some iterations: between two events of a GPU's stream, or by the clock.
#[allow(unreachable_code, unused_variables)] // no event exists where the build has no kernels
fn timed(device: &Device, iterations: u64, mut run: impl FnMut()) -> Duration {
    let Device::Cuda(cuda) = device else {
        let start = Instant::now();
        (0..iterations).for_each(|_| run());
        return start.elapsed();
    };
    let start = cuda.event().expect("a GPU");
    (0..iterations).for_each(|_| run());
    let end = cuda.event().expect("a GPU");
    let spent = Duration::from_secs_f64(start.seconds_to(&end).expect("a GPU"));
    device.synchronize().expect("kernels that succeed");
    spent
}

/// Bytes a second, read and written, of the best of some copies.
fn copy_bandwidth(device: &Device) -> f64 {
    let bytes: usize = match device {
        Device::Cpu => 256 << 20,
        _ if cfg!(feature = "emulate") => 16 << 20,
        _ => 1 << 30,
    };
    let from = Tensor::<f32>::zeros(device, bytes >> 12, 1 << 10).expect("memory");
    let mut to = Tensor::<f32>::zeros(device, bytes >> 12, 1 << 10).expect("memory");
    let mut copy = || match (from.as_slice(), to.as_mut_slice()) {
        (Some(from), Some(to)) => {
            const CHUNK: usize = 1 << 18;
            let chunks = to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK));
            chunks.for_each(|(to, from)| to.copy_from_slice(from));
        }
        _ => to.view_mut().copy_from(from.view()).expect("one shape"),
    };
    let best = (0..12).map(|_| timed(device, 1, &mut copy)).min().expect("some");
    2.0 * bytes as f64 / best.as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
