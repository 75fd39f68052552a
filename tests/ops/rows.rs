//! `rows`: copies, so the oracle is a loop.

use super::twin::{Tensor, on_every_twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::rows;

fn gathers_and_scatters<D: Backend>(device: &D) {
    for (rows, width, index) in
        [(1, 1, vec![0]), (5, 3, vec![4, 0, 2]), (67, 19, vec![66, 1, 65, 0, 33])]
    {
        let x: Vec<f64> = (0..rows * width).map(|x| x as f64).collect();
        let want: Vec<f64> =
            index.iter().flat_map(|&i| &x[i as usize * width..][..width]).copied().collect();
        let (buf, idx) = (buffer::<D, D::Act>(device, &x), device.buffer::<u32>(&index).unwrap());
        let mut out = filled::<D, D::Act>(device, f64::NAN, want.len());
        let at = View::<D, _>::all(&idx);
        rows::gather(device, width, View::all(&buf), at, ViewMut::all(&mut out)).unwrap();
        assert_eq!(read::<D, D::Act>(device, &out), want);

        let mut dx = filled::<D, D::Act>(device, f64::NAN, x.len());
        rows::scatter(device, width, View::all(&out), at, ViewMut::all(&mut dx)).unwrap();
        let kept = |(i, &x): (usize, &f64)| {
            if index.contains(&((i / width) as u32)) { x } else { 0.0 }
        };
        assert_eq!(
            read::<D, D::Act>(device, &dx),
            x.iter().enumerate().map(kept).collect::<Vec<_>>()
        );
    }
}
on_every_device!(gathers_and_scatters);

/// Copies, so bit for bit; NaN and infinity among the values. Sizes around a lane's 8 elements, a
/// warp's 256 and a block's 8 rows.
fn moves_every_row<D: Backend>(device: &D) {
    for (rows, width) in [
        (1, 1),
        (7, 2),
        (8, 7),
        (9, 8),
        (31, 9),
        (33, 65),
        (257, 64),
        (2, 264),
        (3, 520),
        (2, 2049),
    ] {
        for odd in [0, 1] {
            let mut values = noise(1, (rows + 1) * width);
            (values[0], values[width]) = (f64::INFINITY, f64::NAN);
            let x = Tensor::<D, D::Act>::new(device, odd, &values);
            let index: Vec<u32> = (0..rows).map(|i| ((i * 5 + 1) % (rows + 1)) as u32).collect();
            let indices = device.buffer(&index).unwrap();
            let indices = View::<D, u32>::all(&indices);
            let from = |i: usize| &x.values[index[i] as usize * width..][..width];
            let want: Vec<f64> = (0..rows).flat_map(from).copied().collect();
            let mut out = Tensor::<D, D::Act>::poison(device, odd, rows * width);
            rows::gather(device, width, x.view(), indices, out.view_mut()).unwrap();
            assert_eq!(bits(&out.read(device)), bits(&want), "gather, {rows} x {width}");

            // back to where they came from, where no two came from one row
            let mut seen = vec![false; rows + 1];
            if index.iter().any(|&i| std::mem::replace(&mut seen[i as usize], true)) {
                continue;
            }
            let mut want = vec![0.0; x.values.len()];
            for &i in &index {
                let row = i as usize * width..(i as usize + 1) * width;
                want[row.clone()].copy_from_slice(&x.values[row]);
            }
            let mut dx = Tensor::<D, D::Act>::poison(device, odd, want.len());
            rows::scatter(device, width, out.view(), indices, dx.view_mut()).unwrap();
            assert_eq!(bits(&dx.read(device)), bits(&want), "scatter, {rows} x {width}");
        }
    }
}
on_every_twin!(moves_every_row);

fn bits(values: &[f64]) -> Vec<u64> {
    let quiet = |x: &f64| if x.is_nan() { f64::NAN } else { *x }.to_bits();
    values.iter().map(quiet).collect()
}

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let (x, index) = (vec![0.0; 6], vec![0, 1]);
    let (x, index) = (View::<Cpu, f32>::all(&x), View::all(&index));
    for (width, len, rule) in [
        (4, 8, "x must be [rows, width]"),
        (0, 0, "x must be [rows, width]"),
        (3, 9, "out must be [indices, width]"),
    ] {
        let mut out = vec![0.0; len];
        refused(
            rows::gather(&device, width, x, index, ViewMut::all(&mut out)),
            "rows::gather",
            rule,
        );
    }
    let mut dx = vec![0.0; 9];
    let scattered = rows::scatter(&device, 3, x, View::of(index.buf, 0..1), ViewMut::all(&mut dx));
    refused(scattered, "rows::scatter", "out must be [indices, width]");
}
