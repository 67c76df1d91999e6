//! The language head with its log-probs, to the gradients of hidden states and weight: three products, 6 N V H
//! operations, and what lies between them.

use collimate::nn::{
    Decoder, DecoderConfig, LayoutBuilder, LmHead, RopeConfig, RopeScaling, Weights,
};
use collimate::ops::token_logprobs::Wanted;
use collimate::{Element, Tensor};
use half::bf16;

use crate::harness::{Bench, noise};

pub fn all(bench: &mut Bench<'_>) {
    if bench.on_gpu() {
        head::<bf16>(bench, 8192, 128_256, 4096);
    } else {
        head::<f32>(bench, 256, 8192, 256);
    }
}

/// `rows` scored tokens in sequences of 128.
fn head<T: Element<Stat = f32>>(bench: &mut Bench<'_>, rows: usize, vocab: usize, hidden: usize) {
    let (rows, vocab, hidden) =
        (bench.size(rows, 128), bench.size(vocab, 517), bench.size(hidden, 16));
    let device = &bench.device();
    let id = format!("forward and backward/{rows}x{hidden}x{vocab} {}", T::DTYPE);
    bench.flops_case("linear_token_logprobs", &id, 6 * rows * vocab * hidden, || {
        let config = DecoderConfig {
            vocab,
            hidden,
            layers: 1,
            heads: 2,
            kv_heads: 2,
            head_dim: 8,
            ff: 8,
            rms_eps: 1e-5,
            rope: RopeConfig { theta: 1e4, scaling: RopeScaling::None },
            tied: true,
            qkv_bias: false,
            qk_norm: false,
            max_positions: 256,
            padding: None,
        };
        let (decoder, table) = Decoder::new(config).expect("a shape");
        let mut weights = Weights::<T>::zeros(device, &table).expect("memory");
        let rows_of = |rows| noise::<T>(device, rows, hidden);
        let head_weight = weights.get_mut(decoder.lm_head()).expect("a head");
        { head_weight }.copy_from(rows_of(vocab).view()).expect("its shape");
        let mut grads = Weights::<f32>::zeros(device, &table).expect("memory");
        let mut layout = LayoutBuilder::new();
        for sequence in 0..rows / 128 {
            let token = |i: usize| ((sequence * 128 + i) * 7919 % vocab) as i32;
            layout.push(&[1], &(0..128).map(token).collect::<Vec<_>>());
        }
        let layout = layout.finish().expect("sequences");
        let batch = decoder.batch::<T>(device, layout).expect("tokens");
        let hidden_states = rows_of(rows);
        let mut dhidden = Tensor::<T>::zeros(device, rows, hidden).expect("memory");
        let dlogps = noise::<f32>(device, rows, 1);
        let head = LmHead::of(device);
        move |_| {
            for sequences in head.chunks(&batch, vocab, 1) {
                let own = &batch.layout.cu_scored;
                let (start, end) = (own[sequences.start] as usize, own[sequences.end] as usize);
                let wanted = Wanted::default();
                let chunk = head
                    .forward(&decoder, &weights, &hidden_states, &batch, sequences, wanted)
                    .expect("a chunk");
                let dlogps = dlogps.view().rows_range(start, end - start).expect("its rows");
                let (dhidden, grads) = (&mut dhidden, &mut grads);
                chunk
                    .backward(&decoder, &weights, &batch, dlogps, dhidden, grads)
                    .expect("a gradient");
            }
        }
    });
}
