//! Goal:   a pool in parts on several ranks answers what a whole one answers, in the same bits, and
//!         is saved as it is; training with it is the same training, in the memory that was
//!         planned.
//! Method: ranks as threads against one rank with all rows and all queries; few different rows, so
//!         that most answers are ties between parts; steps with either form of the pool.

use crate::common::threads_comm::ThreadsComm;
use crate::common::tiny::tiny;
use crate::step::{EPOCHS, PAIRS, SAFECLIP, STEPS, batch_of_objective};
use roclip::backend::cpu::Cpu;
use roclip::backend::{Communicator, Solo, View, ViewMut};
use roclip::encode::{self, Keep};
use roclip::flow::{Locks, Matches, Place, State};
use roclip::matching::{CaptionPool, PoolPart, PoolShape, Variant};
use roclip::optim::{AdamWOptions, DecayRule, Schedule, ScheduleKind};
use roclip::rng::{Domain, Rng};
use roclip::train::objective::Objective;
use roclip::train::plan::{Plan, Planner};
use roclip::train::recipe::Recipe;
use roclip::train::step::{Outcome, StepOptions, Trainer};
use std::path::Path;

const WIDTH: usize = 3;
/// Queries of a rank.
const QUERIES: usize = 2;

/// What each of that many ranks comes to.
pub fn on_ranks<T: Send>(world: usize, work: impl Fn(ThreadsComm) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let ranks = ThreadsComm::world(world).into_iter();
        let threads: Vec<_> = ranks.map(|comm| scope.spawn(|| work(comm))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn part_of(comm: &impl Communicator<Cpu<f32>>) -> PoolPart {
    PoolPart { number: comm.rank(), of: comm.world_size() }
}

/// Rows along the axes, whose products are exact and often the same, and now and then one that is
/// no number.
fn axes(rng: &mut Rng, count: usize) -> Vec<f32> {
    let mut rows = vec![0.0; count * WIDTH];
    for row in rows.chunks_mut(WIDTH) {
        match rng.below(13) as usize {
            12 => row.fill(f32::NAN),
            axis => row[axis % WIDTH] = if axis % 2 == 0 { 1.0 } else { -1.0 },
        }
    }
    rows
}

/// What goes in at once, where from, and what all ranks ask before; the first are asked of an empty
/// pool.
struct Turn {
    queries: Vec<f32>,
    rows: Vec<f32>,
    from: Vec<Place>,
}

fn turns(rows: usize, world: usize) -> Vec<Turn> {
    let mut rng = Rng::new(5, Domain::Init, rows as u64, world as u64);
    let turn = |shard| {
        // Up to twice the pool, often less than a part.
        let count = 1 + rng.below([3, 2 * rows as u64][shard as usize % 2]) as usize;
        let from = (0..count as u32).map(|index| Place { shard, index }).collect();
        let (queries, rows) = (axes(&mut rng, QUERIES * world), axes(&mut rng, count));
        Turn { queries, rows, from }
    };
    (0..24).map(turn).collect()
}

/// Rows that were found, which, and how near, in bits.
type Found = (Vec<u32>, Vec<u32>, Vec<u32>, Vec<Place>);

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// One rank's pool.
struct Asked<C> {
    device: Cpu<f32>,
    comm: C,
    pool: CaptionPool<Cpu<f32>>,
}

impl<C: Communicator<Cpu<f32>>> Asked<C> {
    fn new(comm: C, variant: Variant, rows: usize, queries: usize) -> Self {
        let device = Cpu::new(1).unwrap();
        let part = part_of(&comm);
        let shape = PoolShape { rows, width: WIDTH, queries, part };
        let pool = CaptionPool::new(&device, variant, shape, 1).unwrap();
        Self { device, comm, pool }
    }

    /// `None` where the pool is empty.
    fn take(&mut self, turn: &Turn) -> Option<Found> {
        let Self { device, comm, pool } = self;
        let mut out = vec![0.0; pool.shape().queries * WIDTH];
        let queries = View::all(&turn.queries);
        let asked = pool.lookup(device, comm, queries, ViewMut::all(&mut out));
        assert_eq!(asked.is_ok(), pool.filled() > 0);
        let found = asked.ok().map(|()| {
            let Matches { index, score, from } = pool.matches(device).unwrap().clone();
            (bits(&out), index, bits(&score), from)
        });
        pool.insert(device, View::all(&turn.rows), &turn.from).unwrap();
        found
    }

    /// On rank 0; another rank's is empty.
    fn saved(&self) -> State {
        let Self { device, comm, pool } = self;
        let mut state = State::default();
        if comm.rank() == 0 {
            pool.save(device, comm, &mut state).unwrap();
        } else {
            pool.hand_over(device, comm).unwrap();
        }
        state
    }

    fn load(&mut self, state: &State) {
        self.pool.load(&self.device, state, Path::new("p.safetensors")).unwrap();
    }
}

/// The answers of all ranks to a turn, as one rank that asks for all gives them.
fn together(ranks: Vec<Option<Found>>) -> Option<Found> {
    ranks.into_iter().reduce(|all, more| {
        let (mut all, more) = (all?, more?);
        all.0.extend(more.0);
        all.1.extend(more.1);
        all.2.extend(more.2);
        all.3.extend(more.3);
        Some(all)
    })?
}

/// States by what is in them; rows may be no numbers.
fn assert_same(one: &State, other: &State, what: &str) {
    assert_eq!(one.values, other.values, "{what}");
    assert!(one.tensors.keys().eq(other.tensors.keys()), "{what}");
    for (name, tensor) in &one.tensors {
        let other = &other.tensors[name];
        assert_eq!(tensor.shape, other.shape, "{what}: {name}");
        assert_eq!(bits(&tensor.values), bits(&other.values), "{what}: {name}");
    }
}

const SIZES: [usize; 7] = [1, 2, 3, 4, 12, 13, 29];

/// Pools smaller than their number, partly filled, wrapped and run over, batches larger than all.
#[test]
fn parts_answer_as_the_whole() {
    for (variant, rows) in Variant::ALL.into_iter().flat_map(|v| SIZES.map(|rows| (v, rows))) {
        for world in 1..=4 {
            let (turns, what) = (turns(rows, world), format!("{variant:?}, {rows}, {world}"));
            let mut whole = Asked::new(Solo, variant, rows, QUERIES * world);
            let wanted: Vec<_> = turns.iter().map(|turn| whole.take(turn)).collect();
            let ranks = on_ranks(world, |comm| {
                let mut part = Asked::new(comm, variant, rows, QUERIES);
                let found: Vec<_> = turns.iter().map(|turn| part.take(turn)).collect();
                (found, part.saved())
            });
            assert_same(&whole.saved(), &ranks[0].1, &what);
            assert!(ranks[1..].iter().all(|(_, state)| *state == State::default()));
            for (turn, wanted) in wanted.into_iter().enumerate() {
                let found = ranks.iter().map(|(found, _)| found[turn].clone()).collect();
                assert_eq!(together(found), wanted, "{what}: turn {turn}");
            }
        }
    }
}

/// Saved after every turn, and read by a pool in other parts, which goes on.
#[test]
fn a_pool_goes_on_in_any_parts() {
    for (variant, rows) in Variant::ALL.into_iter().flat_map(|v| [3, 13].map(|rows| (v, rows))) {
        let turns = turns(rows, 1);
        let mut whole = Asked::new(Solo, variant, rows, QUERIES);
        let mut state = whole.saved();
        for (number, turn) in turns.iter().enumerate() {
            whole.take(turn);
            let states = on_ranks([3, 1, 4, 2][number % 4], |comm| {
                let mut part = Asked::new(comm, variant, rows, QUERIES);
                part.load(&state);
                part.pool.insert(&part.device, View::all(&turn.rows), &turn.from).unwrap();
                part.saved()
            });
            state = states.into_iter().next().unwrap();
            assert_same(&whole.saved(), &state, &format!("{variant:?}, {rows}, turn {number}"));
        }
    }
}

/// More rows than are brought together at once.
#[test]
fn a_large_pool_is_saved_piece_by_piece() {
    let rows = 1_500_001;
    let mut rng = Rng::new(5, Domain::Init, 0, 0);
    let captions = axes(&mut rng, rows - 2);
    let mut whole = Asked::new(Solo, Variant::RoClip, rows, QUERIES);
    whole.pool.insert(&whole.device, View::all(&captions), &[]).unwrap();
    let states = on_ranks(2, |comm| {
        let mut part = Asked::new(comm, Variant::RoClip, rows, QUERIES);
        part.pool.insert(&part.device, View::all(&captions), &[]).unwrap();
        part.saved()
    });
    assert_same(&whole.saved(), &states[0], "pieces");
}

/// On all ranks, also on those to which no row of the batch would have gone.
#[test]
fn rows_of_another_width_are_refused_by_every_part() {
    on_ranks(3, |comm| {
        let mut part = Asked::new(comm, Variant::RoClip, 9, QUERIES);
        let rows = vec![0.5; WIDTH + 1];
        assert!(part.pool.insert(&part.device, View::all(&rows), &[]).is_err());
        assert_eq!((part.pool.head(), part.pool.filled()), (0, 0));
    });
}

pub fn recipe(objective: Objective, shard_pool: bool) -> Recipe {
    let step = StepOptions {
        objective,
        match_every: 1,
        micro_batch: PAIRS,
        accum_freq: 1,
        schedule: Schedule::new(ScheduleKind::Const, 1e-3, 0, EPOCHS * STEPS),
        steps_per_epoch: STEPS,
        bn_sync: false,
    };
    let (adamw, decay) = (AdamWOptions::default(), DecayRule::ByShape);
    let (model, keep, locks) = (tiny(false), Keep::All, Locks::default());
    Recipe { model, keep, locks, pool_rows: 29, shard_pool, adamw, decay, step }
}

fn plan(recipe: &Recipe, world_size: usize) -> Plan {
    let planner: Planner<'_, Cpu<f32>> =
        Planner { recipe: recipe.clone(), world_size, lanes: world_size, evaluation: None };
    planner.plan().unwrap()
}

/// Losses and matches of all steps, and what rank 0 saves.
type Trained = (Vec<(u64, Option<Matches>)>, State);

/// Ranks have the same captions, so that pools are full of ties, but other pictures.
fn train(recipe: &Recipe, comm: ThreadsComm) -> Trained {
    let device = Cpu::<f32>::new(1).unwrap();
    let part = part_of(&comm);
    let weights = encode::init(&device, &recipe.model, 7).unwrap();
    let parts = recipe.parts(&device, &comm, weights, 7).unwrap();
    let mut trainer = Trainer::new(device.clone(), comm, parts, recipe.step.clone()).unwrap();
    let mut told = Vec::new();
    for step in 0..EPOCHS * STEPS {
        let mut batch = batch_of_objective(recipe.step.objective, 15, step);
        batch.images.iter_mut().for_each(|x| *x *= 1.0 + part.number as f32);
        batch.samples.iter_mut().for_each(|sample| sample.shard_index = part.number as u32);
        let Outcome::Stepped(report) = trainer.step(&batch, step / STEPS).unwrap() else {
            panic!("step {step} was refused");
        };
        let matches = trainer.matches().filter(|_| report.matched).cloned();
        told.push((report.loss.to_bits(), matches));
    }
    let plan = plan(recipe, part.of);
    assert_eq!(device.allocated(), plan.allocated(), "{}, {part:?}", recipe.step.objective);
    let mut state = State::default();
    if part.number == 0 {
        trainer.save(&mut state).unwrap();
    } else {
        trainer.hand_over().unwrap();
    }
    (told, state)
}

/// Either form of the pool: the same losses, matches, weights, moments and pools.
#[test]
fn training_does_not_depend_on_who_holds_the_pool() {
    for objective in [Objective::RoClip, Objective::Paper, Objective::Official, SAFECLIP] {
        for world in [1, 2, 3] {
            let [whole, parts] = [false, true]
                .map(|shard| on_ranks(world, |comm| train(&recipe(objective, shard), comm)));
            for (rank, (whole, part)) in whole.iter().zip(&parts).enumerate() {
                assert!(whole == part, "{objective}, rank {rank} of {world}");
            }
            let matched = whole[0].0.iter().filter(|(_, matches)| matches.is_some()).count();
            assert!(matched > 0 || objective == SAFECLIP, "{objective}");
        }
    }
}

/// A pool of ten million captions: what a rank holds of it is the share that it should be, and what
/// is exchanged beside.
#[test]
fn a_large_pool_is_shared_out() {
    let plan = |shard_pool, world_size| {
        let recipe = Recipe { pool_rows: 10_000_001, ..recipe(Objective::RoClip, shard_pool) };
        plan(&recipe, world_size)
    };
    let (width, row) = (tiny(false).embed_dim, 4 * tiny(false).embed_dim);
    let whole = 10_000_001 * row + 8 * PAIRS;
    assert_eq!([plan(false, 1), plan(false, 8), plan(true, 1)].map(|plan| plan.pool), [whole; 3]);
    // Two rows and four numbers for each query of all, and the choice.
    let exchanged = 8 * PAIRS * 4 * (2 * width + 4) + 4 * PAIRS;
    assert_eq!(plan(true, 8).pool, 1_250_001 * row + exchanged);
    assert_eq!(plan(true, 8).host_checkpoint, plan(false, 1).host_checkpoint);
}
