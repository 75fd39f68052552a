//! `attention` against softmax(QKᵀ/√d)·V written out in PyTorch (and compared there with
//! `scaled_dot_product_attention`): packed sequences shorter, equal and longer than a block of
//! queries, causal and full, flat and peaky.

use super::*;
use roclip::backend::ops::attention::{self, AttentionShape, Mask};

fn shape<D: Backend>(c: &Case<D>) -> AttentionShape {
    let ([tokens, width], heads) = (c.dims("out"), c.index("heads")[0] as usize);
    let offsets = c.index("cu_seqlens");
    let causal = ["causal", "peaky"].contains(&c.case.as_str());
    AttentionShape {
        sequences: offsets.len() - 1,
        tokens,
        max_len: offsets.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap(),
        heads,
        head_dim: width / heads,
        mask: if causal { Mask::Causal } else { Mask::Full },
    }
}

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "attention") {
        let shape = shape(&c);
        let (cu_seqlens, qkv, dout) = (c.indices("cu_seqlens"), c.act("qkv"), c.act("dout"));
        let (cu_seqlens, qkv) = (View::<D, _>::all(&cu_seqlens), View::<D, _>::all(&qkv));
        let (mut out, mut lse) = (c.poison("out"), c.poison("lse"));
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        attention::forward(device, shape, cu_seqlens, qkv, to.0, to.1).unwrap();
        c.close::<D::Act>("out", &out);
        c.close::<D::Acc>("lse", &lse);

        let mut dqkv = c.poison("dqkv");
        attention::backward(
            device,
            shape,
            cu_seqlens,
            qkv,
            View::all(&out),
            View::all(&lse),
            View::all(&dout),
            ViewMut::all(&mut dqkv),
        )
        .unwrap();
        c.close::<D::Act>("dqkv", &dqkv);
    }
}
on_every_device!(agrees_with_torch);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let good = AttentionShape {
        sequences: 2,
        tokens: 5,
        max_len: 3,
        heads: 2,
        head_dim: 3,
        mask: Mask::Full,
    };
    let call = |shape: AttentionShape, [offsets, qkv, out, lse]: [usize; 4]| {
        let mut cu_seqlens = vec![0, 3, 5];
        cu_seqlens.resize(offsets, 5);
        let (qkv, mut out, mut lse) = (vec![0.0; qkv], vec![0.0; out], vec![0.0; lse]);
        let to = (ViewMut::all(&mut out), ViewMut::all(&mut lse));
        let from = (View::all(&cu_seqlens), View::all(&qkv));
        attention::forward(&device, shape, from.0, from.1, to.0, to.1)
    };
    let op = "attention::forward";
    call(good, [3, 90, 30, 10]).unwrap();
    refused(call(good, [4, 90, 30, 10]), op, "cu_seqlens must be [sequences + 1]");
    refused(call(good, [3, 91, 30, 10]), op, "qkv must be [S, 3, C]");
    refused(call(good, [3, 90, 33, 10]), op, "out must be [S, C]");
    refused(call(good, [3, 90, 30, 9]), op, "lse must be [S, heads]");
    let empty = AttentionShape { tokens: 1, ..good };
    let rule = "every sequence needs a token, every extent at least 1";
    refused(call(empty, [3, 18, 6, 2]), op, rule);
}
