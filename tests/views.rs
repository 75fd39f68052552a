//! Goal: a second view of each pair changes nothing of the first, is another draw of the same pair,
//! and is as reproducible; the flags ask for it where the objective does.
//! Method: batches of two views against those of one, byte for byte; other numbers of workers,
//! other places to go on from.

use crate::common::shards::{load, load_from, plain, write_shards};
use roclip::config::{self, Parsed};
use roclip::data::loader::{Loader, LoaderConfig, Mode, Position};
use roclip::data::text::eda::Eda;
use roclip::flow::Batch;
use std::ffi::OsString;

fn config(shards: &str, mode: Mode, views: usize) -> LoaderConfig {
    let plain = plain(shards);
    let mut config =
        LoaderConfig { seed: 5, shuffle: 9, mode, views, drop_last: true, workers: 3, ..plain };
    config.text.eda = Some(Eda::new(None));
    config
}

fn batches(config: LoaderConfig) -> Vec<Batch> {
    let loader = Loader::new(config).unwrap();
    loader.epoch(Position::start_of(1)).unwrap().map(Result::unwrap).collect()
}

/// Rows of view `n` of `views`: pictures and captions.
fn view(batch: &Batch, n: usize, views: usize) -> (Vec<f32>, Vec<Vec<u32>>) {
    let (pixels, pairs) = (batch.images.len() / views, batch.len());
    let captions = (n * pairs..(n + 1) * pairs).map(|row| batch.captions.get(row).to_vec());
    (batch.images[n * pixels..][..pixels].to_vec(), captions.collect())
}

#[test]
fn the_first_view_is_what_it_is_alone_and_the_second_another_draw() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), 3, 14);
    let augmented = batches(config(&shards, Mode::Train, 1));
    for mode in [Mode::Train, Mode::Eval] {
        let one = batches(config(&shards, mode, 1));
        let two = batches(config(&shards, mode, 2));
        assert_eq!((one.len(), two.len()), (10, 10));
        let (mut other_pictures, mut other_captions) = (0, 0);
        for ((one, two), augmented) in one.iter().zip(&two).zip(&augmented) {
            assert_eq!(
                (two.images.len(), two.captions.len()),
                (2 * one.images.len(), 2 * one.len())
            );
            assert_eq!(two.samples, one.samples);
            assert_eq!(view(two, 0, 2), view(one, 0, 1));
            let (pictures, captions) = view(two, 1, 2);
            let (first, first_captions) = view(augmented, 0, 1);
            let pixels = first.len() / one.len();
            let pairs = pictures.chunks(pixels).zip(first.chunks(pixels));
            other_pictures += pairs.filter(|(a, b)| a != b).count();
            other_captions += captions.iter().zip(&first_captions).filter(|(a, b)| a != b).count();
        }
        assert_eq!(other_pictures, 40, "draws of the second view are not those of the first");
        assert!(other_captions > 20, "{other_captions} captions of 40");
    }
}

/// The second view does not depend on what the first is.
#[test]
fn the_second_view_is_the_same_beside_any_first() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), 2, 10);
    let [train, eval] = [Mode::Train, Mode::Eval].map(|mode| batches(config(&shards, mode, 2)));
    assert!(!train.is_empty());
    for (train, eval) in train.iter().zip(&eval) {
        assert_eq!(view(train, 1, 2), view(eval, 1, 2));
        assert_ne!(view(train, 0, 2), view(eval, 0, 2));
    }
}

#[test]
fn two_views_do_not_depend_on_workers_and_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&write_shards(dir.path(), 3, 14), Mode::Train, 2);
    let whole = load(config.clone());
    assert_eq!(whole.hashes.len(), 10);
    for workers in [1, 2, 7] {
        let again = load(LoaderConfig { workers, ..config.clone() });
        assert_eq!(again.hashes, whole.hashes, "{workers} workers");
    }
    for (done, position) in whole.positions.iter().enumerate() {
        let rest = load_from(config.clone(), position.clone());
        assert_eq!(rest.hashes, whole.hashes[done + 1..], "after batch {done}");
    }
}

#[test]
fn views_that_do_not_fill_a_batch_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let shards = write_shards(dir.path(), 1, 3);
    for (views, drop_last) in [(0, true), (3, true), (2, false)] {
        let config = LoaderConfig { drop_last, ..config(&shards, Mode::Train, views) };
        let refusal = Loader::new(config).unwrap_err().to_string();
        assert!(refusal.contains("views"), "{refusal}");
    }
}

/// What flags make of the loader: views, and whether the first is augmented.
fn assembled(flags: &str) -> (usize, Mode, config::Settings) {
    let words = format!("roclip-train --shards a.tar {flags}");
    let Parsed::Run(args, settings) =
        config::parse(words.split_whitespace().map(OsString::from)).unwrap()
    else {
        panic!("not parsed: {flags}");
    };
    let assembled = config::assemble(&args, &settings).unwrap();
    assert_eq!(assembled.eval.views, 1, "evaluation has one view");
    (assembled.loader.views, assembled.loader.mode, assembled.identity)
}

#[test]
fn objectives_ask_for_their_views_and_keep_their_weights() {
    let (views, mode, identity) = assembled("--objective cleanclip --cleanclip-unimodal 0.5");
    assert_eq!((views, mode), (2, Mode::Eval));
    assert_eq!(identity["cleanclip_unimodal"], "0.5");
    assert_eq!(identity["cleanclip_clip"], "1");
    let (views, mode, identity) = assembled("--objective cyclip");
    assert_eq!((views, mode), (1, Mode::Train));
    assert_eq!([&identity["cyclip_in_modal"], &identity["cyclip_cross_modal"]], ["0.25"; 2]);
    let (views, mode, identity) = assembled("--objective roclip --cyclip-in-modal 7");
    assert_eq!((views, mode), (1, Mode::Train));
    assert!(!identity.keys().any(|name| name.contains("cyclip") || name.contains("cleanclip")));
    let words = "roclip-train --shards a.tar --objective cyclip --cyclip-in-modal -1";
    let refusal = config::parse(words.split_whitespace().map(OsString::from)).unwrap_err();
    assert!(refusal.to_string().contains("--cyclip-in-modal"), "{refusal}");
}
