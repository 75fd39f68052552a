//! What each stage costs, one thread, picture by picture.
//!
//! The stages of a picture are timed one after the other, so that each finds its input in the
//! caches as it does in the loader. Of several rounds the least time of each stage of each picture
//! counts: other programs can only add to it.

use super::clock;
use super::corpus::Corpus;
use roclip::Result;
use roclip::data::decode::{DecodeError, DecodeLimits, Encoded, Rgb8};
use roclip::data::jpeg::{self, Plane};
use roclip::data::text::eda::Eda;
use roclip::data::text::tokenizer::{CONTEXT_LENGTH, Tokenizer};
use roclip::data::transform::{CropBox, Draws, Fidelity, Resized, Scratch, Transform};
use roclip::rng::{Domain, Rng};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Microseconds a pair.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stages {
    /// Shards to pairs in memory.
    pub read: f64,
    /// Header, draws, and the file to samples of the part.
    pub decode: f64,
    /// The part to the size of the result.
    pub resize: f64,
    /// Colours and blur, as far as they are done before the last pass.
    pub colour: f64,
    /// The last pass: colours that are left, and normalisation.
    pub finish: f64,
    /// The caption, augmented where that is asked for, to token ids.
    pub tokenise: f64,
}

impl Stages {
    /// All of them.
    pub fn sum(&self) -> f64 {
        self.read + self.decode + self.resize + self.colour + self.finish + self.tokenise
    }

    /// What no loader that decodes the same parts and resizes them can be below.
    pub fn floor(&self) -> f64 {
        self.decode + self.resize
    }
}

/// Times all stages.
///
/// # Errors
/// Shards cannot be read.
pub fn measure(
    corpus: &Corpus,
    transform: &Transform,
    eda: Option<&Eda>,
    rounds: usize,
) -> Result<Stages> {
    let [decode, resize, colour, finish] = pictures(corpus, transform, rounds);
    let (mut read, mut tokenise, pool) = (f64::INFINITY, f64::INFINITY, Arc::default());
    // The first call unpacks the vocabulary.
    tokenise_all(corpus, eda);
    for _ in 0..rounds {
        let start = clock::of_thread();
        let pairs = corpus.read(&pool)?;
        read = read.min(micros(clock::of_thread() - start) / pairs as f64);
        let start = clock::of_thread();
        tokenise_all(corpus, eda);
        tokenise = tokenise.min(micros(clock::of_thread() - start) / corpus.pairs.len() as f64);
    }
    Ok(Stages { read, decode, resize, colour, finish, tokenise })
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn tokenise_all(corpus: &Corpus, eda: Option<&Eda>) {
    let (tokenizer, mut tokens) = (Tokenizer::clip(), Vec::new());
    for (n, pair) in corpus.pairs.iter().enumerate() {
        let caption = eda
            .map(|eda| eda.augment(&pair.caption, &mut Rng::new(0, Domain::Caption, 0, n as u64)));
        let caption = caption.as_ref().unwrap_or(&pair.caption);
        tokenizer.encode(caption, CONTEXT_LENGTH, &mut tokens);
        black_box(&tokens);
    }
}

/// Decode, resize, colour, finish: microseconds a picture. What does not decode counts for
/// nothing.
fn pictures(corpus: &Corpus, transform: &Transform, rounds: usize) -> [f64; 4] {
    let mut worker = Worker::new(transform);
    let mut least = vec![[f64::INFINITY; 5]; corpus.pairs.len()];
    for _ in 0..rounds {
        for (n, (pair, least)) in corpus.pairs.iter().zip(&mut least).enumerate() {
            let mut rng = Rng::new(0, Domain::Image, 0, n as u64);
            let times = worker.picture(&pair.image, &mut rng).unwrap_or_default();
            for (least, time) in least.iter_mut().zip(times) {
                *least = least.min(micros(time));
            }
        }
    }
    let mut mean = [0.0; 5];
    for (stage, mean) in mean.iter_mut().enumerate() {
        *mean = least.iter().map(|times| times[stage]).sum::<f64>() / least.len() as f64;
    }
    let [decode, resize, again, augment, finish] = mean;
    [decode, resize, augment - again, finish]
}

/// What a worker of the loader has.
struct Worker<'a> {
    transform: &'a Transform,
    decoder: jpeg::Scratch,
    planes: [Plane; 3],
    rgb: Rgb8,
    scratch: Scratch,
    resized: Resized,
    row: Vec<f32>,
}

impl<'a> Worker<'a> {
    fn new(transform: &'a Transform) -> Self {
        let side = transform.config().image_size;
        Self {
            transform,
            decoder: jpeg::Scratch::default(),
            planes: Default::default(),
            rgb: Rgb8::default(),
            scratch: Scratch::default(),
            resized: Resized::default(),
            row: vec![0.0; 3 * side * side],
        }
    }

    /// Decode, resize, resize again, resize with colours and blur, finish.
    fn picture(&mut self, bytes: &[u8], rng: &mut Rng) -> Result<[Duration; 5], DecodeError> {
        let transform = self.transform;
        let start = Instant::now();
        let encoded = Encoded::open(bytes, &DecodeLimits::default())?;
        let (width, height) = (encoded.width(), encoded.height());
        let draws = Draws::new(&transform.config().train, width, height, rng);
        let part = draws.part(width, height);
        let (decoder, halvings) = (&mut self.decoder, transform.halvings(part));
        let has_planes = transform.config().fidelity == Fidelity::Fast
            && encoded.planes(part, halvings, decoder, &mut self.planes)?;
        let place = match has_planes {
            true => None,
            false => Some(encoded.rgb(part, decoder, &mut self.rgb)?),
        };
        let decoded = Instant::now();
        let bare = Draws { jitter: None, gray: false, blur_sigma: None, ..draws.clone() };
        self.augment(place, part, &bare);
        let resized = Instant::now();
        // What comes next finds the part in a nearer cache.
        self.augment(place, part, &bare);
        let again = Instant::now();
        self.augment(place, part, &draws);
        let augmented = Instant::now();
        transform.finish(&self.resized, &mut self.row);
        let finished = Instant::now();
        black_box(&self.row);
        let ends = [decoded, resized, again, augmented, finished];
        let mut begin = start;
        Ok(ends.map(|end| end - std::mem::replace(&mut begin, end)))
    }

    /// The planes, or the pixels where the part lies at `place`.
    fn augment(&mut self, place: Option<CropBox>, part: CropBox, draws: &Draws) {
        let (scratch, resized) = (&mut self.scratch, &mut self.resized);
        match place {
            None => self.transform.augment_planes(&self.planes, part, draws, scratch, resized),
            Some(place) => self.transform.augment(&self.rgb, place, draws, scratch, resized),
        }
    }
}
