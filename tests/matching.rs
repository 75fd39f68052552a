//! Goal: the pool is a ring without an off-by-one in either form, it answers with the nearest row
//! it really holds, never with a caption of the same step, and it survives a restart in the same
//! bits.
//!
//! Method: a ring of single captions as the model; the released program's figures for 21,845 rows
//! and batches of 512, worked out by hand; planted rows.

use roclip::Error;
use roclip::backend::cpu::Cpu;
use roclip::backend::{Solo, View, ViewMut};
use roclip::flow::{Place, State};
use roclip::matching::{CaptionPool, PoolPart, PoolShape, Variant};
use roclip::rng::{Domain, Rng};
use std::path::Path;

type Pool = CaptionPool<Cpu<f32>>;

fn shape_of([rows, width, queries]: [usize; 3]) -> PoolShape {
    PoolShape { rows, width, queries, part: PoolPart::WHOLE }
}

fn pool(device: &Cpu<f32>, variant: Variant, shape: [usize; 3]) -> Pool {
    CaptionPool::new(device, variant, shape_of(shape), 1).unwrap()
}

fn saved(device: &Cpu<f32>, pool: &Pool) -> State {
    let mut state = State::default();
    pool.save(device, &Solo, &mut state).unwrap();
    state
}

/// All rows, as they were inserted.
fn rows(device: &Cpu<f32>, pool: &Pool) -> Vec<Vec<f32>> {
    let state = saved(device, pool);
    let (_, tensor) = state.tensors.iter().find(|(name, _)| *name != "pool.places").unwrap();
    tensor.values.chunks(tensor.shape[1]).map(<[f32]>::to_vec).collect()
}

/// Where all rows came from, as a checkpoint has it: shard and position, each in two halves.
fn places(device: &Cpu<f32>, pool: &Pool) -> Vec<Place> {
    let state = saved(device, pool);
    let word = |halves: &[f32]| (f64::from(halves[0]) * 65_536.0 + f64::from(halves[1])) as u32;
    let place = |row: &[f32]| Place { shard: word(&row[..2]), index: word(&row[2..]) };
    state.tensors["pool.places"].values.chunks(4).map(place).collect()
}

/// Rows that name themselves: batch, place in the batch, and zeros.
fn batch(number: usize, count: usize, width: usize) -> Vec<f32> {
    let mut rows = vec![0.0; count * width];
    for (i, row) in rows.chunks_mut(width).enumerate() {
        (row[0], row[1]) = (number as f32, i as f32);
    }
    rows
}

fn unit_rows(stream: u64, count: usize, width: usize) -> Vec<f32> {
    let mut rng = Rng::new(17, Domain::Init, 0, stream);
    let mut rows: Vec<f32> = (0..count * width).map(|_| rng.normal() as f32).collect();
    for row in rows.chunks_mut(width) {
        let norm = row.iter().map(|x| x * x).sum::<f32>().sqrt();
        row.iter_mut().for_each(|x| *x /= norm);
    }
    rows
}

/// 43 batches of 512 into 21,845 rows: 42 bring 21,504, and the last finds room for 341 of its
/// rows.
#[test]
fn a_cycle_of_the_released_pool() {
    let device = Cpu::new(1).unwrap();
    for (variant, head, row_0) in
        [(Variant::Official, 0, [1.0, 0.0]), (Variant::RoClip, 171, [43.0, 341.0])]
    {
        let mut pool = pool(&device, variant, [21_845, 8, 1]);
        for number in 1..=43 {
            assert_eq!(pool.head(), (number - 1) * 512);
            pool.insert(&device, View::all(&batch(number, 512, 8)), &[]).unwrap();
        }
        assert_eq!((pool.head(), pool.filled()), (head, 21_845));
        let rows = rows(&device, &pool);
        assert_eq!(rows[21_844][..2], [43.0, 340.0]);
        assert_eq!(rows[21_504][..2], [43.0, 0.0]);
        assert_eq!(rows[21_503][..2], [42.0, 511.0]);
        assert_eq!(rows[0][..2], row_0);
        assert_eq!(rows[171][..2], [1.0, 171.0]);
        assert!(
            rows.iter().all(|row| row[0] >= 1.0 && row[2..] == [0.0; 6]),
            "an initial row is left"
        );
    }
}

/// Batches of every size up to twice the pool, against captions that come one by one (ring) or fall
/// off the end (released program).
#[test]
fn any_batches_into_a_small_pool() {
    let device = Cpu::new(1).unwrap();
    let mut rng = Rng::new(3, Domain::Init, 0, 0);
    for variant in [Variant::Paper, Variant::RoClip, Variant::Official] {
        let mut pool = pool(&device, variant, [13, 2, 1]);
        let mut model = rows(&device, &pool);
        let mut model_places = vec![Place::UNKNOWN; 13];
        let (mut head, mut filled) = (0, pool.filled());
        assert_eq!(filled, if variant == Variant::Official { 13 } else { 0 });
        for number in 1..400 {
            let count = if number % 9 == 0 { 13 - head } else { 1 + rng.below(27) as usize };
            let rows_in = batch(number, count, 2);
            // Of the last rows of some batches nobody knows.
            let known = count - (number % 3).min(count);
            let place = |i| Place { shard: 70_000 * number as u32, index: u32::MAX - i as u32 };
            let from: Vec<Place> = (0..known).map(place).collect();
            pool.insert(&device, View::all(&rows_in), &from).unwrap();
            for (i, row) in rows_in.chunks(2).enumerate() {
                model[head] = row.to_vec();
                model_places[head] = from.get(i).copied().unwrap_or(Place::UNKNOWN);
                head += 1;
                filled = 13.min(filled + 1);
                if head == 13 {
                    head = 0;
                    if variant == Variant::Official {
                        break;
                    }
                }
            }
            assert_eq!((pool.head(), pool.filled()), (head, filled), "{variant:?}, {number}");
            assert_eq!(rows(&device, &pool), model, "{variant:?}, batch {number} of {count}");
            assert_eq!(places(&device, &pool), model_places, "{variant:?}, batch {number}");
        }
    }
}

/// Every image looks exactly like its caption. The caption is not there when the step asks, and is
/// the answer, where the ring says, when the next step asks.
#[test]
fn an_own_caption_is_found_from_the_next_step_on() {
    let device = Cpu::new(1).unwrap();
    for variant in [Variant::Paper, Variant::Official, Variant::RoClip] {
        let mut pool = pool(&device, variant, [24, 16, 4]);
        let mut out = vec![0.0; 4 * 16];
        pool.insert(&device, View::all(&unit_rows(0, 4, 16)), &[]).unwrap();
        for step in 1..20 {
            let captions = unit_rows(step, 4, 16);
            pool.lookup(&device, &Solo, View::all(&captions), ViewMut::all(&mut out)).unwrap();
            let before = pool.matches(&device).unwrap().clone();
            assert!(before.score.iter().all(|&s| s < 0.999), "{variant:?}, {step}: {before:?}");
            let head = pool.head() as u32;
            pool.insert(&device, View::all(&captions), &[]).unwrap();
            pool.lookup(&device, &Solo, View::all(&captions), ViewMut::all(&mut out)).unwrap();
            let after = pool.matches(&device).unwrap();
            assert_eq!(after.index, [head, head + 1, head + 2, head + 3], "{variant:?}, {step}");
            assert!(after.score.iter().all(|&s| (s - 1.0).abs() < 1e-6));
            assert_eq!(out, captions);
        }
    }
}

/// Rows not filled yet are zeros, whose score of 0 would beat every caption pointing away.
#[test]
fn rows_not_filled_take_no_part() {
    let device = Cpu::new(1).unwrap();
    let mut pool = pool(&device, Variant::Paper, [5, 2, 1]);
    let mut out = vec![0.0; 2];
    let query = vec![1.0, 0.0];
    assert!(pool.lookup(&device, &Solo, View::all(&query), ViewMut::all(&mut out)).is_err());
    pool.insert(&device, View::all(&vec![-1.0, 0.0, -0.6, 0.8]), &[]).unwrap();
    pool.lookup(&device, &Solo, View::all(&query), ViewMut::all(&mut out)).unwrap();
    assert_eq!(out, [-0.6, 0.8]);
    let matches = pool.matches(&device).unwrap();
    assert_eq!((&matches.index, &matches.score), (&vec![1], &vec![-0.6]));
}

/// Moments within five standard errors; rows are searched by direction and returned raw; the seed
/// alone decides them.
#[test]
fn the_released_pool_starts_as_noise() {
    let device = Cpu::new(1).unwrap();
    let mut pool = pool(&device, Variant::Official, [2_000, 64, 1]);
    assert_eq!((pool.filled(), pool.head()), (2_000, 0));
    let state = saved(&device, &pool);
    let values = &state.tensors["pool.values"].values;
    let n = values.len() as f64;
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    let square = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n;
    assert!(mean.abs() < 5.0 / n.sqrt() && (square - 1.0).abs() < 5.0 * (2.0 / n).sqrt());

    let wanted = &values[7 * 64..8 * 64];
    let norm = wanted.iter().map(|x| x * x).sum::<f32>().sqrt();
    let query: Vec<f32> = wanted.iter().map(|x| x / norm).collect();
    let mut out = vec![0.0; 64];
    pool.lookup(&device, &Solo, View::all(&query), ViewMut::all(&mut out)).unwrap();
    assert_eq!(out, wanted);
    let score = pool.matches(&device).unwrap().score[0];
    assert!((score - 1.0).abs() < 1e-6, "cosine, not inner product: {score}");

    let again = |seed| {
        let shape = shape_of([2_000, 64, 1]);
        saved(&device, &CaptionPool::new(&device, Variant::Official, shape, seed).unwrap())
    };
    assert!(again(1) == state && again(2) != state);
}

#[test]
fn a_saved_pool_goes_on_in_the_same_bits() {
    let device = Cpu::new(1).unwrap();
    for variant in [Variant::Paper, Variant::Official, Variant::RoClip] {
        for steps in [0, 1, 2, 5] {
            let mut kept = pool(&device, variant, [13, 6, 3]);
            for step in 0..steps {
                kept.insert(&device, View::all(&unit_rows(step, 5, 6)), &[]).unwrap();
            }
            let state = saved(&device, &kept);
            let shape = shape_of([13, 6, 3]);
            let mut other = CaptionPool::new(&device, variant, shape, 99).unwrap();
            other.load(&device, &state, Path::new("p.safetensors")).unwrap();
            assert_eq!(saved(&device, &other), state);
            for step in steps..steps + 6 {
                let (queries, mut outs) =
                    (unit_rows(100 + step, 3, 6), [vec![0.0; 18], vec![0.0; 18]]);
                for (pool, out) in [&mut kept, &mut other].into_iter().zip(&mut outs) {
                    pool.insert(&device, View::all(&unit_rows(step, 5, 6)), &[]).unwrap();
                    pool.lookup(&device, &Solo, View::all(&queries), ViewMut::all(out)).unwrap();
                }
                assert_eq!(outs[0], outs[1]);
                assert_eq!(kept.matches(&device).unwrap(), other.matches(&device).unwrap());
            }
            assert_eq!(saved(&device, &kept), saved(&device, &other));
        }
    }
}

#[test]
fn a_pool_that_contradicts_itself_is_refused_and_nothing_changes() {
    let device = Cpu::new(1).unwrap();
    for variant in [Variant::RoClip, Variant::Official] {
        let mut pool = pool(&device, variant, [13, 6, 3]);
        pool.insert(&device, View::all(&unit_rows(1, 5, 6)), &[]).unwrap();
        let good = saved(&device, &pool);
        let mut wrong = Vec::new();
        for (head, filled) in [(13, 13), (14, 13), (0, 14), (4, 5), (6, 5), (0, 5)] {
            let mut state = good.clone();
            state.values.insert("pool.head".into(), head.into());
            state.values.insert("pool.filled".into(), filled.into());
            wrong.push(state);
        }
        let mut fractional = good.clone();
        fractional.values.insert("pool.head".into(), 0.5.into());
        let mut headless = good.clone();
        headless.values.remove("pool.head");
        let mut rowless = good.clone();
        rowless.tensors.clear();
        let other_size = CaptionPool::new(&device, variant, shape_of([12, 6, 3]), 1);
        wrong.extend([fractional, headless, rowless, saved(&device, &other_size.unwrap())]);
        for state in wrong {
            let refusal = pool.load(&device, &state, Path::new("p.safetensors")).unwrap_err();
            assert!(matches!(refusal, Error::Format { .. }), "{refusal}");
            assert!(refusal.to_string().contains("p.safetensors"));
            assert_eq!(saved(&device, &pool), good);
        }
    }
}

#[test]
fn captions_of_another_width_are_refused() {
    let device = Cpu::new(1).unwrap();
    for variant in [Variant::RoClip, Variant::Official] {
        let mut pool = pool(&device, variant, [13, 6, 3]);
        let before = saved(&device, &pool);
        for len in [7, 13 * 6 + 1, 27 * 6 + 5] {
            assert!(pool.insert(&device, View::all(&vec![0.5; len]), &[]).is_err());
            assert_eq!(saved(&device, &pool), before);
        }
    }
}
