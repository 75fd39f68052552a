//! `pool`: matching against PyTorch's scores with planted ties (within a tile, across tiles), a NaN
//! row in front, and winners in the first and last place; insertion against a loop.

use super::*;
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
on_every_device!(a_query_of_nan_gets_row_0);

/// Equal rows at every distance from the end of a tile must score equal bits, or the tie rule
/// fails.
fn equal_rows_tie_wherever_they_stand<D: Backend>(device: &D) {
    let width = 37;
    let row: Vec<f64> = (0..width).map(|i| f64::from((i * 7919 % 1000) as f32 / 999.0)).collect();
    for (b, m) in [(1, 3), (1, 257), (3, 259), (5, 300), (32, 264), (33, 513)] {
        let queries = buffer::<D, D::Act>(device, &row.repeat(b));
        let rows = buffer::<D, D::Act>(device, &row.repeat(m));
        let mut index = device.buffer(&vec![7u32; b]).unwrap();
        let mut score = filled::<D, D::Acc>(device, f64::NAN, b);
        let from = (View::all(&queries), View::all(&rows));
        let to = (ViewMut::all(&mut index), ViewMut::all(&mut score));
        pool::matching(device, width, from.0, from.1, to.0, to.1).unwrap();
        let index = device.to_vec::<u32>(View::all(&index)).unwrap();
        assert_eq!(index, vec![0; b], "{b} queries, {m} rows");
    }
}
on_every_device!(equal_rows_tie_wherever_they_stand);

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
on_every_device!(inserts_in_a_ring);

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
    refused(call(3, [6, 9, 3, 2]), op, "index and score must be [B]");

    let insert = |rows: usize, pool: usize, at| {
        let (rows, mut pool) = (vec![0.0; rows], vec![0.0; pool]);
        pool::insert::<Cpu>(&device, 3, View::all(&rows), ViewMut::all(&mut pool), at)
    };
    let op = "pool::insert";
    refused(insert(4, 9, 0), op, "rows must be [B, D], pool [M, D]");
    refused(insert(12, 9, 0), op, "B <= M and at < M");
    refused(insert(3, 9, 3), op, "B <= M and at < M");
}
