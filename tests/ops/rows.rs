//! `rows`: copies, and inner products of rows, so the oracle is a loop in f64.

use super::twin::{Tensor, U, on_every_twin};
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

/// Rows and widths: widths around a lane's 8 elements and a warp's 256, rows around a block's 8.
const SIZES: [(usize, usize); 10] =
    [(1, 1), (7, 2), (8, 7), (9, 8), (31, 9), (33, 65), (257, 64), (2, 264), (3, 520), (2, 2049)];

/// Copies, so bit for bit; NaN and infinity among the values.
fn moves_every_row<D: Backend>(device: &D) {
    for (rows, width) in SIZES {
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

/// Bound: a lane adds `width / 32` products rounded up to whole loads and the warp five sums more,
/// each off by U of the sum of absolute values; the CPU adds in f64 and rounds once.
fn dot_is_the_sum_of_products<D: Backend>(device: &D) {
    for (rows, width) in SIZES {
        for odd in [0, 1] {
            let a = Tensor::<D, D::Act>::new(device, odd, &noise(3, rows * width));
            let b = Tensor::<D, D::Act>::new(device, odd, &noise(4, rows * width));
            let products: Vec<f64> = a.values.iter().zip(&b.values).map(|(a, b)| a * b).collect();
            let sum = |row: &[f64]| row.iter().sum::<f64>();
            let size = |row: &[f64]| row.iter().map(|x| x.abs()).sum::<f64>();
            let want: Vec<f64> = products.chunks(width).map(sum).collect();
            let sizes: Vec<f64> = products.chunks(width).map(size).collect();
            let mut out = Tensor::<D, D::Acc>::poison(device, odd, rows);
            rows::dot(device, width, a.view(), b.view(), out.view_mut()).unwrap();
            let terms = (width as f64 / 32.0).ceil() + 8.0 + 5.0;
            out.check(device, &format!("dot, {rows} x {width}"), &want, |i| terms * U * sizes[i]);
        }
    }
}
on_every_twin!(dot_is_the_sum_of_products);

/// Not of the rows beside it.
fn dot_keeps_nan_in_its_row<D: Backend>(device: &D) {
    let (rows, width) = (9, 264);
    let mut values = noise(3, rows * width);
    values[2 * width + 77] = f64::NAN;
    let a = Tensor::<D, D::Act>::new(device, 0, &values);
    let b = Tensor::<D, D::Act>::new(device, 0, &noise(4, rows * width));
    let mut out = Tensor::<D, D::Acc>::poison(device, 0, rows);
    rows::dot(device, width, a.view(), b.view(), out.view_mut()).unwrap();
    for (row, value) in out.read(device).into_iter().enumerate() {
        assert_eq!(value.is_nan(), row == 2, "row {row}");
    }
}
on_every_twin!(dot_keeps_nan_in_its_row);

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
    let rule = "a and b must be [rows, width], out [rows], rows >= 1";
    for [a, b, out, width] in [[6, 6, 3, 3], [6, 9, 2, 3], [9, 6, 3, 3], [0, 0, 0, 3], [0, 0, 2, 0]]
    {
        let (a, b, mut out) = (vec![0.0; a], vec![0.0; b], vec![0.0; out]);
        let to = ViewMut::all(&mut out);
        refused(rows::dot(&device, width, View::all(&a), View::all(&b), to), "rows::dot", rule);
    }
}
