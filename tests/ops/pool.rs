//! `pool`: matching against PyTorch's scores with planted ties (within a tile, across tiles), a NaN
//! row in front, and winners in the first and last place; insertion against a loop. Against its
//! twin: queries and rows around a tile's 128, more tiles than strips, widths of every remainder.

use super::twin::{self, Tensor, U, on_every_kernel, on_every_twin};
use super::*;
use crate::common::tiny::noise;
use roclip::backend::ops::pool;

fn agrees_with_torch<D: Backend>(device: &D) {
    for c in Case::all(device, "pool") {
        let [b, width] = c.dims("queries");
        let (queries, rows) = (c.act("queries"), c.act("rows"));
        let mut index = device.buffer(&vec![u32::MAX; b]).unwrap();
        let mut score = c.poison("score");
        let from = (View::all(&queries), View::all(&rows));
        let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
        pool::matching(device, width, from.0, from.1, to.0, to.1).unwrap();
        assert_eq!(device.to_vec::<u32>(View::all(&index)).unwrap(), c.index("index"));
        c.close::<D::Acc>("score", &score);
    }
}
on_every_device!(agrees_with_torch);

fn agrees_with_its_twin<D: Backend>(device: &D) {
    for (b, m, width) in [
        (1, 1, 1),
        (5, 3, 7),
        (127, 127, 8),
        (128, 128, 31),
        (129, 129, 32),
        (1, 255, 33),
        (130, 257, 64),
        (257, 300, 40),
        (3, 1000, 520),
        (140, 64 * 128, 8),
        (5, 64 * 128 + 1, 16),
        (5, 200 * 128 + 3, 8),
    ] {
        compare(device, b, m, width, 0);
    }
    for odd in [1, 2, 4, 8] {
        compare(device, 33, 150, 40, odd);
    }
}
on_every_twin!(agrees_with_its_twin);
on_every_kernel!(agrees_with_its_twin, kernels: Portable, Plain);

/// Around the tiles of the Hopper kernels: bands of 256 queries, tiles of 208 and 256 rows, steps
/// of 64 and 128 elements, one strip and several.
fn agrees_with_its_twin_around_tiles<D: Backend>(device: &D) {
    for (b, m, width) in [
        (1, 1, 8),
        (3, 207, 16),
        (128, 208, 64),
        (129, 209, 72),
        (255, 255, 120),
        (256, 256, 128),
        (257, 257, 136),
        (300, 415, 8),
        (2, 417, 248),
        (70, 513, 264),
        (5, 2 * 3 * 256 + 1, 8),
        (600, 1900, 24),
        (9, 66 * 256 + 7, 8),
        (4, 300, 2048),
    ] {
        compare(device, b, m, width, 0);
    }
}
on_every_kernel!(agrees_with_its_twin_around_tiles, around_tiles: Hopper, Int8);

/// Most queries stand in the pool, some of them several times; some rows are NaN.
///
/// The device may prefer another row than the twin where its error lets it, `(D + 4)U` of the sum
/// of absolute products for each of the two; of equal rows it must be the lowest.
fn compare<D: Backend>(device: &D, b: usize, m: usize, width: usize, odd: usize) {
    let (mut queries, mut rows) = (noise(1, b * width), noise(2, m * width));
    for i in 0..b {
        let places = [m - 1 - i % m, i * 7, i * 31 + 100];
        for place in &places[..i % 4] {
            let query = queries[i * width..][..width].to_vec();
            rows[place % m * width..][..width].copy_from_slice(&query);
        }
    }
    if m > 2 {
        for row in [0, m / 2] {
            rows[row * width + width / 2] = f64::NAN;
        }
        queries[b / 2 * width] = if b > 1 { f64::NAN } else { 1.0 };
    }
    let queries = Tensor::<D, D::Act>::new(device, odd, &queries);
    let rows = Tensor::<D, D::Act>::new(device, odd, &rows);
    let mut index = device.buffer(&vec![u32::MAX; b]).unwrap();
    let mut score = Tensor::<D, D::Acc>::poison(device, odd, b);
    let to = (ViewMut::all(&mut index), score.view_mut());
    pool::matching(device, width, queries.view(), rows.view(), to.0, to.1).unwrap();
    let (index, score) = (device.to_vec::<u32>(View::all(&index)).unwrap(), score.read(device));
    let (mut want, mut best) = (vec![0; b], vec![0.0; b]);
    let from = (twin::all(&queries.values), twin::all(&rows.values));
    let to = (ViewMut::all(&mut want), twin::all_mut(&mut best));
    pool::matching(&twin::twin(), width, from.0, from.1, to.0, to.1).unwrap();

    for (i, query) in queries.values.chunks(width).enumerate() {
        let what = format!("query {i} of {b}, {m} rows, D = {width}, {odd}");
        let (got, want) = (index[i] as usize, want[i] as usize);
        assert!(got < m, "{what}: row {got}");
        let row = |i: usize| &rows.values[i * width..][..width];
        let products = |i| query.iter().zip(row(i)).map(|(q, r)| q * r);
        let [exact, terms] = [products(got).sum(), products(got).map(f64::abs).sum::<f64>()];
        let slack = |terms: f64| (width + 4) as f64 * U * terms;
        if best[i].is_nan() {
            assert!(got == 0 && score[i].is_nan(), "{what}: row {got}, score {}", score[i]);
            continue;
        }
        assert!((score[i] - exact).abs() <= slack(terms), "{what}: {} for {exact}", score[i]);
        let better = slack(terms) + slack(products(want).map(f64::abs).sum());
        assert!(exact >= best[i] - better, "{what}: row {got}, {exact}, not {want}, {}", best[i]);
        let first = (0..got).find(|&i| row(i) == row(got));
        assert_eq!(first, None, "{what}: a row equal to {got} stands before it");
    }
}

fn a_query_of_nan_gets_row_0<D: Backend>(device: &D) {
    let queries = buffer::<D, D::Act>(device, &[f64::NAN, 1.0, 0.0, -1.0]);
    let rows = buffer::<D, D::Act>(device, &[0.0, 0.5, 0.0, 0.25, 0.0, -1.0]);
    let mut index = device.buffer(&[7u32; 2]).unwrap();
    let mut score = filled::<D, D::Acc>(device, 3.0, 2);
    let from = (View::all(&queries), View::all(&rows));
    let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
    pool::matching(device, 2, from.0, from.1, to.0, to.1).unwrap();
    assert_eq!(device.to_vec::<u32>(View::all(&index)).unwrap(), [0, 2]);
    let score = read::<D, D::Acc>(device, &score);
    assert!(score[0].is_nan() && score[1] == 1.0, "{score:?}");
}
on_every_twin!(a_query_of_nan_gets_row_0);
on_every_kernel!(a_query_of_nan_gets_row_0, of_nan: Portable, Plain);

/// Equal rows at every distance from the end of a tile must score equal bits, or the tie rule
/// fails.
fn equal_rows_tie_wherever_they_stand<D: Backend>(device: &D) {
    for width in [37, 40] {
        let value = |i: usize| f64::from((i * 7919 % 1000) as f32 / 999.0);
        let row: Vec<f64> = (0..width).map(value).collect();
        let shapes = [(1, 3), (1, 257), (3, 259), (5, 300), (32, 264), (33, 513), (2, 16_700)];
        // as many as the search in 8 bits takes down, and one more
        for (b, m) in shapes.into_iter().chain([(3, 1024), (3, 1025)]) {
            let queries = buffer::<D, D::Act>(device, &row.repeat(b));
            let rows = buffer::<D, D::Act>(device, &row.repeat(m));
            let mut index = device.buffer(&vec![7u32; b]).unwrap();
            let mut score = filled::<D, D::Acc>(device, f64::NAN, b);
            let from = (View::all(&queries), View::all(&rows));
            let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
            pool::matching(device, width, from.0, from.1, to.0, to.1).unwrap();
            let index = device.to_vec::<u32>(View::all(&index)).unwrap();
            assert_eq!(index, vec![0; b], "{b} queries, {m} rows, D = {width}");
        }
    }
}
on_every_twin!(equal_rows_tie_wherever_they_stand);
on_every_kernel!(equal_rows_tie_wherever_they_stand, ties: Portable, Plain, Int8);

fn inserts_in_a_ring<D: Backend>(device: &D) {
    let width = 3;
    for (rows, size, at) in [(1, 1, 0), (2, 5, 0), (2, 5, 3), (4, 5, 4), (5, 5, 2), (0, 5, 1)] {
        let new: Vec<f64> = (0..rows * width).map(|x| 1.0 + x as f64).collect();
        let mut want = vec![-1.0; size * width];
        for (i, row) in new.chunks(width).enumerate() {
            want[(at + i) % size * width..][..width].copy_from_slice(row);
        }
        let new = buffer::<D, D::Act>(device, &new);
        let mut ring = filled::<D, D::Act>(device, -1.0, size * width);
        pool::insert(device, width, View::all(&new), ViewMut::all(&mut ring), at).unwrap();
        assert_eq!(read::<D, D::Act>(device, &ring), want, "{rows} rows at {at} of {size}");
    }
}
on_every_twin!(inserts_in_a_ring);

#[test]
fn refuses_what_does_not_fit() {
    let device = Cpu::<f32>::new(1).unwrap();
    let call = |width, [queries, rows, index, score]: [usize; 4]| {
        let (queries, rows) = (vec![0.0; queries], vec![0.0; rows]);
        let (mut index, mut score) = (vec![0; index], vec![0.0; score]);
        let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
        pool::matching(&device, width, View::all(&queries), View::all(&rows), to.0, to.1)
    };
    let op = "pool::matching";
    call(3, [6, 9, 2, 2]).unwrap();
    refused(call(3, [6, 0, 2, 2]), op, "B, M and D must be at least 1");
    refused(call(0, [6, 9, 2, 2]), op, "B, M and D must be at least 1");
    refused(call(3, [6, 10, 2, 2]), op, "queries must be [B, D], rows [M, D], M < 2^32");
    refused(call(3, [6, 9, 3, 2]), op, "index and score must be [B, k]");

    let insert = |rows: usize, pool: usize, at| {
        let (rows, mut pool) = (vec![0.0; rows], vec![0.0; pool]);
        pool::insert::<Cpu>(&device, 3, View::all(&rows), ViewMut::all(&mut pool), at)
    };
    let op = "pool::insert";
    refused(insert(4, 9, 0), op, "rows must be [B, D], pool [M, D]");
    refused(insert(12, 9, 0), op, "B <= M and at < M");
    refused(insert(3, 9, 3), op, "B <= M and at < M");
}
