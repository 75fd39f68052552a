//! Norms of several ranks as one.

use super::*;

/// Around a block's threads. Slack: a rounding of the largest for each rank and some more, and an
/// error of the mean is carried on.
fn merge_agrees_with_its_twin<D: Backend>(device: &D) {
    let f64s = twin();
    for (ranks, width) in [(1, 1), (2, 7), (5, 255), (64, 257)] {
        let value =
            |i: usize, x: f64| if (i / width).is_multiple_of(2) { 8.0 + x } else { x.abs() };
        let values = noise(5, ranks * 2 * width).into_iter().enumerate();
        let values: Vec<f64> = values.map(|(i, x)| value(i, x)).collect();
        let given = Tensor::<D, D::Acc>::new(device, 1, &values);
        let mut exact = BatchNormStats::<Cpu<f64>>::new(&f64s, width).unwrap();
        batchnorm::merge(&f64s, all(&given.values), &mut exact).unwrap();
        let room = || filled::<D, D::Acc>(device, f64::NAN, width);
        let mut stats = BatchNormStats::<D> { mean: room(), var: room() };
        batchnorm::merge(device, given.view(), &mut stats).unwrap();
        let [mean, var] = [&stats.mean, &stats.var].map(|buf| read::<D, D::Acc>(device, buf));
        let most = values.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let slack = (ranks as f64 + 4.0) * U * most;
        for c in 0..width {
            let off = (mean[c] - exact.mean[c]).abs();
            assert!(off <= slack, "mean {c} of {ranks} x {width}: off by {off:e} > {slack:e}");
            let spread = exact.var[c].sqrt();
            let slack = (ranks as f64 + 8.0) * U * exact.var[c] + 2.0 * slack * (spread + slack);
            let off = (var[c] - exact.var[c]).abs();
            assert!(off <= slack, "var {c} of {ranks} x {width}: off by {off:e} > {slack:e}");
        }
    }
}
on_every_twin!(merge_agrees_with_its_twin);

/// Ranks with a part of the rows each come to what one does with all of them. In float64, to its
/// roundings.
#[test]
fn ranks_are_one_batch() {
    let (device, rows, width) = (twin(), 12, 5);
    let [x, dy] = [1, 2].map(|stream| noise(stream, rows * width));
    let gain_bias = Param::<Cpu<f64>>::new(&device, 0, &noise(3, 2 * width));
    let weight = gain_bias.weight();
    let mut whole = BatchNormStats::<Cpu<f64>>::new(&device, width).unwrap();
    batchnorm::statistics(&device, all(&x), &mut whole).unwrap();
    let (mut want, mut want_tables) = (vec![0.0; rows * width], vec![0.0; 2 * width]);
    let (stats, to) = ((Statistics::Batch, &whole), (all_mut(&mut want), None));
    gradients(&device, all(&x), weight, stats, None, all(&dy), to, all_mut(&mut want_tables));
    let close = |got: &[f64], want: &[f64]| {
        got.iter().zip(want).for_each(|(got, want)| assert!((got - want).abs() < 1e-13));
    };
    for ranks in [1, 2, 3, 4] {
        let len = rows / ranks * width;
        let parts = || (0..ranks).map(|rank| rank * len..(rank + 1) * len);
        let gathered: Vec<f64> = parts()
            .flat_map(|part| {
                let mut stats = BatchNormStats::<Cpu<f64>>::new(&device, width).unwrap();
                batchnorm::statistics(&device, View::of(&x, part), &mut stats).unwrap();
                [stats.mean, stats.var].concat()
            })
            .collect();
        let mut stats = BatchNormStats::<Cpu<f64>>::new(&device, width).unwrap();
        batchnorm::merge(&device, all(&gathered), &mut stats).unwrap();
        close(&stats.mean, &whole.mean);
        close(&stats.var, &whole.var);
        let (mut sums, mut tables) = (vec![0.0; 2 * width], vec![0.0; 2 * width]);
        for part in parts() {
            let (x, dy, mut own) = (View::of(&x, part.clone()), View::of(&dy, part), sums.clone());
            let to = (all_mut(&mut own), all_mut(&mut tables));
            batchnorm::backward_sums(&device, x, &stats, None, dy, None, to.0, to.1).unwrap();
            sums.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        close(&tables, &want_tables);
        let mut dx = vec![0.0; rows * width];
        for part in parts() {
            let (x, dy) = (View::of(&x, part.clone()), View::of(&dy, part.clone()));
            let (to, sums) = (ViewMut::of(&mut dx, part), (all(&sums), rows));
            let stats = (Statistics::Batch, &stats);
            batchnorm::backward(&device, x, weight, stats, None, dy, sums, to).unwrap();
        }
        close(&dx, &want);
    }
}
