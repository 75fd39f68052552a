//! Goal:   a communicator of a single rank, which exchanges with itself whatever several would,
//!         changes no bit of a training; and its collectives do with one rank what they say.
//! Method: steps beside a process that is alone: with a rank that is a thread on the CPU and on the
//!         emulated GPU, with NCCL on a real one.

use crate::bn_sync;
use crate::common::threads_comm::ThreadsComm;
use crate::common::tiny::noise;
use crate::sharded;
use crate::step::{EPOCHS, STEPS, batch_of_objective};
use roclip::backend::{Backend, Communicator, Float, Solo, View, ViewMut};
use roclip::encode::{self, Keep};
use roclip::flow::State;
use roclip::train::objective::Objective;
use roclip::train::recipe::Recipe;
use roclip::train::step::{Outcome, Trainer};

/// Losses, and what is saved.
fn train<D: Backend>(device: &D, comm: impl Communicator<D>, recipe: &Recipe) -> (Vec<u64>, State) {
    let weights = encode::init(device, &recipe.model, 7).unwrap();
    let parts = recipe.parts(device, &comm, weights, 7).unwrap();
    let mut trainer = Trainer::new(device.clone(), comm, parts, recipe.step.clone()).unwrap();
    let (objective, side) = (recipe.step.objective, recipe.model.vision_cfg.image_size());
    let losses = (0..EPOCHS * STEPS).map(|step| {
        let epoch = step / recipe.step.steps_per_epoch;
        let batch = batch_of_objective(objective, side, step);
        match trainer.step(&batch, epoch).unwrap() {
            Outcome::Stepped(report) => report.loss.to_bits(),
            Outcome::Refused(refusal) => panic!("step {step}: {refusal:?}"),
        }
    });
    let (losses, mut state) = (losses.collect(), State::default());
    trainer.save(&mut state).unwrap();
    (losses, state)
}

fn changes_nothing<D: Backend, C: Communicator<D>>(device: &D, comm: impl Fn() -> C) {
    assert!(!comm().is_alone() && comm().world_size() == 1);
    let recipes = [
        sharded::recipe(Objective::Clip, false),
        sharded::recipe(Objective::RoClip, false),
        bn_sync::recipe(1, 1, Keep::All, true),
    ];
    for (n, recipe) in recipes.iter().enumerate() {
        let same = train(device, comm(), recipe) == train(device, Solo, recipe);
        assert!(same, "recipe {n}: a rank that exchanges with itself has other bits");
    }
}

/// Gathered, exchanged and summed from and to the middle of buffers; sums beside other work.
#[allow(dead_code, reason = "NCCL's, which is there with the feature cuda")]
fn collectives_are_identities<D: Backend>(device: &D, comm: &impl Communicator<D>) {
    let values: Vec<D::Acc> = noise(1, 1000).into_iter().map(D::Acc::from_f64).collect();
    let (from, mut to) = (device.buffer(&values).unwrap(), device.alloc::<D::Acc>(900).unwrap());
    let all = |buf: &D::Buf<D::Acc>| device.to_vec::<D::Acc>(View::all(buf)).unwrap();
    let part = || View::<D, D::Acc>::of(&from, 50..850);
    comm.all_gather(device, part(), ViewMut::of(&mut to, 100..900)).unwrap();
    assert_eq!(all(&to)[100..], values[50..850]);
    assert!(all(&to)[..100].iter().all(|x| x.to_f64() == 0.0), "nothing beside it");
    comm.all_to_all(device, part(), ViewMut::of(&mut to, 0..800)).unwrap();
    assert_eq!(all(&to)[..800], values[50..850]);

    let mut sums = device.buffer(&values).unwrap();
    comm.all_reduce_sum(device, ViewMut::of(&mut sums, 1..999)).unwrap();
    assert_eq!(all(&sums), values);
    for piece in [500..1000, 250..500, 3..250] {
        // What was enqueued before a sum is in it.
        let early = View::<D, D::Acc>::of(&from, 0..piece.len());
        device.copy(early, ViewMut::of(&mut sums, piece.clone())).unwrap();
        comm.begin_sum(device, ViewMut::of(&mut sums, piece)).unwrap();
        comm.all_reduce_sum(device, ViewMut::of(&mut to, 0..10)).unwrap();
    }
    comm.end_sums(device, ViewMut::all(&mut sums)).unwrap();
    let expected = [&values[..3], &values[..247], &values[..250], &values[..500]].concat();
    assert_eq!(all(&sums), expected);
}

#[test]
fn on_the_cpu() {
    let device = roclip::backend::cpu::Cpu::<f32>::new(1).unwrap();
    changes_nothing(&device, ThreadsComm::with_itself);
    collectives_are_identities(&device, &ThreadsComm::with_itself());
}

#[cfg(feature = "sim")]
#[test]
fn on_sim() {
    use roclip::backend::cuda::{Emulator, Gpu, Mode};
    let device = Gpu::new(Emulator::new(Mode::Eager, 1)).unwrap();
    changes_nothing(&device, ThreadsComm::with_itself);
}

#[cfg(feature = "cuda")]
mod nccl {
    use super::*;
    use roclip::backend::cuda::nccl::{Nccl, unique_id};
    use roclip::backend::cuda::{Card, Gpu};

    #[test]
    fn cuda() {
        let card = Card::open(0).unwrap();
        let comm = || Nccl::join(&card, &unique_id().unwrap(), 0, 1).unwrap();
        let device = Gpu::new(card.clone()).unwrap();
        collectives_are_identities(&device, &comm());
        changes_nothing(&device, comm);
    }
}
