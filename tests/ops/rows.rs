//! `rows`: copies, so the oracle is a loop.

use super::*;
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
