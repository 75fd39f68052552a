//! Attacks on training data, to prove a defence against: triggers, poisoned pairs, and the truth
//! about them. What is poisoned says so ([`manifest`]).
//!
//! ```text
//! spec ─▶ plan ◀─ survey (training shards: keys, captions that name a class)
//!          │  ◀─ pictures (chosen from one reading of their shards)
//!          └──▶ poison ─▶ shards, targets/, poison.jsonl, attacks.json
//! ```

// What a picture suffers.
pub mod trigger;
pub mod warp;
mod letters;

// What is asked for, and what comes of it.
pub mod captions;
pub mod spec;
mod survey;
mod pictures;
mod plan;
mod options;
pub mod poison;
pub mod manifest;

/// What a random choice is for.
#[derive(Clone, Copy)]
enum Purpose {
    Target = 0,
    Picture = 1,
    Caption = 2,
    Word = 3,
    Place = 4,
    Key = 5,
}

/// The `epoch` of the stream, of `Domain::Poison`, from which an attack draws for a purpose.
fn stream(attack: usize, purpose: Purpose) -> u64 {
    (attack as u64) << 3 | purpose as u64
}
