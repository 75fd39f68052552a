//! The tiny model that several generators share, and the numbers that fill it: both sides compute
//! them from a hash, so that no file holds them.

use super::golden;
use roclip::backend::Float;
use roclip::encode::ClipConfig;
use roclip::flow::ParamTable;

fn splitmix64(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// The generators' `noise`: values in [-1, 1) that f32 holds exactly.
pub fn noise(stream: u64, n: usize) -> Vec<f64> {
    let value = |i| (splitmix64((stream << 32) | i as u64) >> 48) as f64 / 32768.0 - 1.0;
    (0..n).map(value).collect()
}

/// The model of `golden/make_encode.py`.
pub fn tiny(quick_gelu: bool) -> ClipConfig {
    let config =
        ClipConfig::load(golden::folder().join("encode_config.json").to_str().unwrap()).unwrap();
    ClipConfig { quick_gelu, ..config }
}

/// The model of `golden/make_resnet.py`.
pub fn tiny_resnet() -> ClipConfig {
    ClipConfig::load(golden::folder().join("resnet_config.json").to_str().unwrap()).unwrap()
}

/// The weights of either, as a flat buffer.
pub fn tiny_weights(table: &ParamTable) -> Vec<f64> {
    let mut weights = vec![0.0; table.weights_len()];
    for (stream, param) in table.weights().enumerate() {
        let norm = ["ln_", "bn", "downsample.1"].iter().any(|part| param.name.contains(part));
        let gain = ["weight", "running_var"].iter().any(|part| param.name.ends_with(part));
        let base = if norm && gain { 1.0 } else { 0.0 };
        let values = noise(stream as u64, param.slot.len).into_iter().map(|v| base + 0.5 * v);
        weights[param.slot.range()].iter_mut().zip(values).for_each(|(to, v)| *to = v);
    }
    weights
}

/// Values of another precision.
pub fn convert<F: Float>(values: &[f64]) -> Vec<F> {
    values.iter().map(|&v| F::from_f64(v)).collect()
}

/// `max|difference| / max|reference|`, the generators' `error`.
pub fn error<F: Float>(got: &[F], reference: &[f64]) -> f64 {
    assert_eq!(got.len(), reference.len());
    let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, f64::max);
    let pairs = got.iter().zip(reference);
    let difference = largest(&mut pairs.map(|(g, r)| (g.to_f64() - r).abs()));
    difference / largest(&mut reference.iter().map(|r| r.abs()))
}
