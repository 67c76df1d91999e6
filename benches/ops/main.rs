//! Every operation on the CPU, and on a GPU where there is one: time, bytes a second, and the share
//! of what a plain copy reaches on the same device.

mod attention;
mod gather_rows;
mod harness;
mod head;
mod losses;
mod on_policy;
mod optimizer;
mod sampling;
mod sequence_sum;
mod token_logprobs;
mod transformer;

use criterion::Criterion;
use harness::Bench;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for device in harness::devices() {
        let mut bench = Bench::new(&mut criterion, device);
        token_logprobs::all(&mut bench);
        sequence_sum::all(&mut bench);
        losses::all(&mut bench);
        gather_rows::all(&mut bench);
        transformer::all(&mut bench);
        attention::all(&mut bench);
        head::all(&mut bench);
        optimizer::all(&mut bench);
        sampling::all(&mut bench);
        on_policy::all(&mut bench);
    }
    criterion.final_summary();
}
