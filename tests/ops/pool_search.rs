//! `pool`, beyond the one nearest row: the k nearest against the definition, which planted equal
//! rows, NaN rows and too few rows make hard; and the search in 8 bits against the one in bf16,
//! which must find the same rows with the same bits whatever the data.

use super::twin::{Tensor, U, on_every_kernel, on_every_twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::pool;

fn finds_the_k_nearest<D: Backend>(device: &D) {
    for (b, m, width, k) in [
        (1, 1, 1, 1),
        (3, 9, 7, 8),
        (129, 130, 40, 2),
        (130, 257, 64, 8),
        (5, 1000, 16, 3),
        (257, 530, 24, 8),
        (2, 66 * 256 + 1, 8, 5),
    ] {
        compare(device, [b, m, width, k]);
    }
}
on_every_twin!(finds_the_k_nearest);
on_every_kernel!(finds_the_k_nearest, k_nearest: Portable, Plain);

/// A quarter of the rows are another quarter again; two are NaN, and one query.
fn compare<D: Backend>(device: &D, [b, m, width, k]: [usize; 4]) {
    let (mut queries, mut rows) = (noise(3, b * width), noise(4, m * width));
    for i in 0..m / 4 {
        let row = rows[i * width..][..width].to_vec();
        rows[(m - 1 - i) * width..][..width].copy_from_slice(&row);
    }
    if m > 8 {
        for row in [1, m - 2] {
            rows[row * width] = f64::NAN;
        }
    }
    if b > 2 {
        queries[width] = f64::NAN;
    }
    let queries = Tensor::<D, D::Act>::new(device, 0, &queries);
    let rows = Tensor::<D, D::Act>::new(device, 0, &rows);
    let mut index = device.buffer(&vec![u32::MAX; b * k]).unwrap();
    let mut score = Tensor::<D, D::Acc>::poison(device, 0, b * k);
    let to = (ViewMut::all(&mut index), score.view_mut());
    pool::top_k(device, width, k, queries.view(), rows.view(), to.0, to.1).unwrap();
    let (index, score) = (device.to_vec::<u32>(View::all(&index)).unwrap(), score.read(device));
    for (i, query) in queries.values.chunks(width).enumerate() {
        let found = (&index[i * k..][..k], &score[i * k..][..k]);
        let what = format!("query {i} of {b}, {m} rows, D = {width}, k = {k}");
        check(&what, query, &rows.values, found);
    }
}

/// Scores are within `(D + 4)U` of the sum of absolute products, and so two rows whose scores are
/// nearer to each other than both their errors may change places, but equal rows may not.
fn check(what: &str, query: &[f64], rows: &[f64], (index, score): (&[u32], &[f64])) {
    let rows: Vec<&[f64]> = rows.chunks(query.len()).collect();
    let products = |row: &[f64]| query.iter().zip(row).map(|(q, r)| q * r).collect::<Vec<f64>>();
    let exact: Vec<f64> = rows.iter().map(|row| products(row).iter().sum()).collect();
    let slack = |row: usize| {
        (query.len() + 4) as f64 * U * products(rows[row]).iter().map(|p| p.abs()).sum::<f64>()
    };
    let numbers = exact.iter().filter(|score| !score.is_nan()).count();
    let found = index.len().min(numbers);
    for at in found..index.len() {
        assert!(index[at] == 0 && score[at].is_nan(), "{what}: {}, {}", index[at], score[at]);
    }
    let index: Vec<usize> = index[..found].iter().map(|&i| i as usize).collect();
    for (at, &row) in index.iter().enumerate() {
        let error = (score[at] - exact[row]).abs();
        assert!(error <= slack(row), "{what}: row {row} scores {}, not {}", score[at], exact[row]);
        let sorted = at == 0 || score[at] <= score[at - 1];
        assert!(sorted, "{what}: {score:?} are not sorted");
        let twins = (0..row).filter(|&other| rows[other] == rows[row]);
        for twin in twins {
            assert!(index[..at].contains(&twin), "{what}: row {row} before its equal, {twin}");
        }
    }
    let Some(&last) = index.last() else { return };
    for (row, score) in exact.iter().enumerate() {
        let left_out = !score.is_nan() && !index.contains(&row);
        let better = left_out && *score > exact[last] + slack(row) + slack(last);
        assert!(!better, "{what}: row {row} with {score} is not among {index:?}");
    }
}

/// Every number of rows up to two tiles of 208, every number of queries up to a band; the best row
/// is the last one for every second query, the first one for the others.
#[cfg(feature = "sim")]
#[test]
fn every_remainder_of_hoppers_tiles_sim() {
    use roclip::backend::Device;
    use roclip::backend::cuda::{Emulator, Gpu, Kernels, Mode};
    let gpu = Gpu::new(Emulator::new(Mode::Mixed, 2)).unwrap().with_kernels(Kernels::Hopper);
    let width = 8;
    for m in 1..=2 * 208 + 1 {
        let b = 1 + m * 37 % 256;
        let mut rows = noise(9, m * width);
        let queries: Vec<f64> = (0..b * width).map(|i| [1.0, -1.0][i / width % 2]).collect();
        rows[..width].fill(-1.0);
        rows[(m - 1) * width..].fill(1.0);
        let queries = Tensor::<Gpu<Emulator>, _>::new(&gpu, 0, &queries);
        let rows = Tensor::<Gpu<Emulator>, _>::new(&gpu, 0, &rows);
        let mut index = gpu.buffer(&vec![u32::MAX; b]).unwrap();
        let mut score = Tensor::<Gpu<Emulator>, f32>::poison(&gpu, 0, b);
        let to = (ViewMut::all(&mut index), score.view_mut());
        pool::matching(&gpu, width, queries.view(), rows.view(), to.0, to.1).unwrap();
        let index = gpu.to_vec::<u32>(View::all(&index)).unwrap();
        let want: Vec<u32> =
            (0..b as u32).map(|i| if i % 2 == 0 { m as u32 - 1 } else { 0 }).collect();
        assert_eq!(index, want, "{b} queries, {m} rows");
        let best = if m == 1 { [8.0, -8.0] } else { [8.0, 8.0] };
        let score = score.read(&gpu);
        assert!(score.iter().enumerate().all(|(i, &s)| s == best[i % 2]), "{m} rows: {score:?}");
    }
}

#[cfg(feature = "sim")]
mod int8_sim {
    use super::*;
    use roclip::backend::Device;
    use roclip::backend::cuda::{Emulator, Gpu, Kernels, Mode};

    /// Rows and scores, as bits.
    fn search(kernels: Kernels, seed: u64, width: usize, data: &[Vec<f64>; 2]) -> Vec<(u32, u32)> {
        let gpu = Gpu::new(Emulator::new(Mode::Mixed, seed)).unwrap().with_kernels(kernels);
        let [queries, rows] =
            data.each_ref().map(|values| Tensor::<Gpu<Emulator>, _>::new(&gpu, 0, values));
        let b = data[0].len() / width;
        let mut index = gpu.buffer(&vec![u32::MAX; b]).unwrap();
        let mut score = gpu.buffer(&vec![f32::NAN; b]).unwrap();
        let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
        pool::matching(&gpu, width, queries.view(), rows.view(), to.0, to.1).unwrap();
        let [index, score] = [
            gpu.to_vec::<u32>(View::all(&index)).unwrap(),
            gpu.to_vec::<f32>(View::all(&score)).unwrap().iter().map(|s| s.to_bits()).collect(),
        ];
        index.into_iter().zip(score).collect()
    }

    fn unit(rows: &mut [f64], width: usize) {
        for row in rows.chunks_mut(width) {
            let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter_mut().for_each(|x| *x /= norm);
        }
    }

    /// Queries and rows of length 1, changed by `change`.
    fn same(what: &str, [b, m, width]: [usize; 3], change: impl Fn(&mut [Vec<f64>; 2])) {
        let mut data = [noise(5, b * width), noise(6, m * width)];
        data.iter_mut().for_each(|rows| unit(rows, width));
        change(&mut data);
        let want = search(Kernels::Hopper, 2, width, &data);
        for seed in [2, 6] {
            let got = search(Kernels::Int8, seed, width, &data);
            assert_eq!(got, want, "{what}: {b} queries, {m} rows, D = {width}, seed {seed}");
        }
    }

    #[test]
    fn finds_what_bf16_finds() {
        for shape in [[1, 1, 8], [5, 700, 64], [257, 515, 72], [300, 1500, 136], [3, 300, 1032]] {
            same("random", shape, |_| ());
        }
        let shape = [140, 1700, 64];
        let width = shape[2];
        same("a row sixteen hundred times", shape, |[_, rows]| {
            let row = rows[..width].to_vec();
            rows.chunks_mut(width).skip(90).for_each(|to| to.copy_from_slice(&row));
        });
        same("nearly the same rows", shape, |[_, rows]| {
            let row = rows[..width].to_vec();
            for (i, to) in rows.chunks_mut(width).enumerate() {
                to.copy_from_slice(&row);
                to[i % width] *= 1.0 + (i / width) as f64 / 128.0;
            }
        });
        same("one large value a row", shape, |[queries, rows]| {
            queries.chunks_mut(width).for_each(|row| row[3] = 7.0);
            rows.chunks_mut(width).for_each(|row| row[3] = 5.0);
        });
        same("lengths from 1e-6 to 1e6", shape, |data| {
            for rows in data {
                for (i, row) in rows.chunks_mut(width).enumerate() {
                    row.iter_mut().for_each(|x| *x *= 10f64.powi(i as i32 % 13 - 6));
                }
            }
        });
        same("rows of zeros", shape, |data| {
            for rows in data {
                rows.chunks_mut(width).step_by(5).for_each(|row| row.fill(0.0));
            }
        });
        same("all scores below zero", shape, |[queries, rows]| {
            queries.iter_mut().for_each(|x| *x = x.abs());
            rows.iter_mut().for_each(|x| *x = -x.abs());
        });
    }

    /// Errors of 8 bits that all have one sign: of a row that wins and of one that seems to win by
    /// nearly as much as both their errors together.
    #[test]
    fn keeps_a_winner_that_all_errors_speak_against() {
        let width = 64;
        // the first value sets the scale, the others are rounded to 0
        let row = |first: f64, others: f64| {
            let mut row = vec![others; width];
            row[0] = first;
            row
        };
        let exact = row(1.0, 1.0);
        for (query, seems, wins) in [
            (row(127.0, 0.49), row(1.47, -1.0), row(1.0, 1.0)),
            (exact, row(187.0, -0.72), row(127.0, 0.49)),
        ] {
            same("errors that speak against the winner", [140, 600, width], |[queries, rows]| {
                queries.chunks_mut(width).for_each(|to| to.copy_from_slice(&query));
                rows.iter_mut().for_each(|x| *x *= 0.01);
                rows[100 * width..][..width].copy_from_slice(&seems);
                rows[500 * width..][..width].copy_from_slice(&wins);
            });
        }
    }

    #[test]
    fn gives_way_where_bits_say_nothing() {
        let shape = [140, 600, 64];
        same("queries of NaN and infinity", shape, |[queries, _]| {
            queries[3] = f64::NAN;
            queries[64 * 130] = f64::INFINITY;
        });
        same("a row of NaN", shape, |[_, rows]| rows[64 * 599] = f64::NAN);
        same("a row of infinity", shape, |[_, rows]| rows[0] = f64::NEG_INFINITY);
        same("rows of 1e30 and 1e-30", shape, |[_, rows]| {
            rows[..64].iter_mut().for_each(|x| *x *= 1e30);
            rows[64..128].iter_mut().for_each(|x| *x *= 1e-30);
        });
    }
}

/// What no CPU computes in the time of a test: the kernels' rows and scores at sizes that fill a
/// GPU, against the kernel without what makes them fast.
#[cfg(feature = "cuda")]
mod large {
    use super::*;
    use roclip::backend::Device;
    use roclip::backend::cuda::{Card, Gpu, Kernels};

    type Found = (Vec<u32>, Vec<f32>);

    fn search(kernels: Kernels, width: usize, [queries, rows]: [&[f32]; 2]) -> Found {
        let gpu = Gpu::new(Card::open(0).unwrap()).unwrap().with_kernels(kernels);
        let b = queries.len() / width;
        let upload = |values: &[f32]| {
            let mut to = gpu.alloc(values.len()).unwrap();
            gpu.upload_act(values, ViewMut::all(&mut to)).unwrap();
            to
        };
        let (queries, rows) = (upload(queries), upload(rows));
        let (mut index, mut score) = (gpu.alloc(b).unwrap(), gpu.alloc(b).unwrap());
        let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
        let from = (View::all(&queries), View::all(&rows));
        pool::matching(&gpu, width, from.0, from.1, to.0, to.1).unwrap();
        (gpu.to_vec(View::all(&index)).unwrap(), gpu.to_vec(View::all(&score)).unwrap())
    }

    /// Scores of both are within `(D + 4)U |q||p|` of the exact ones, lengths being 1 but for their
    /// rounding to bf16. The best two of random rows are rarely so near to each other that rounding
    /// decides between them.
    #[test]
    fn agrees_with_the_plain_kernel_cuda() {
        for [b, m, width] in [[512, 20_000, 1024], [1000, 100_003, 512]] {
            let unit = |seed, rows: usize| {
                let mut values = noise(seed, rows * width);
                for row in values.chunks_mut(width) {
                    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                    row.iter_mut().for_each(|x| *x /= norm);
                }
                values.into_iter().map(|x| x as f32).collect::<Vec<f32>>()
            };
            let data = [unit(7, b), unit(8, m)];
            let data = [&data[0][..], &data[1]];
            let slack = 2.0 * 1.01 * (width + 4) as f32 * U as f32;
            let (want, best) = search(Kernels::Plain, width, data);
            for kernels in [Kernels::Hopper, Kernels::Int8, Kernels::Portable] {
                let (index, score) = search(kernels, width, data);
                for i in 0..b {
                    let what = format!("{kernels:?}, query {i} of {b}, {m} rows, D = {width}");
                    let near = (score[i] - best[i]).abs() <= slack;
                    assert!(near, "{what}: {} for {}", score[i], best[i]);
                    assert!((index[i] as usize) < m, "{what}: row {}", index[i]);
                }
                let same = index.iter().zip(&want).filter(|(a, b)| a == b).count();
                assert!(same * 100 >= b * 99, "{kernels:?}: {same} of {b} rows are the same");
            }
        }
    }
}
