//! Speed of a whole training step of CLIP, against the device's own matrix product.
//!
//! `cargo bench --bench step -- [--device cpu|cuda|sim] [--json FILE] [MODEL] [PAIRS] [THREADS]
//! [STEPS]` (ViT-B-32, 32, all cores, 3). Captions are as long as alt texts are, so that batches
//! differ in tokens; a few of them take turns. Prints time and pairs a second, the floating-point
//! operations of the step's matrix products (forward and backward, attention included, everything
//! else left out), and what share of the largest square product's rate, measured before and after,
//! that is. Losses show that the numbers stayed finite.

#[path = "common/mod.rs"]
mod common;
#[path = "common/training.rs"]
mod training;

use clap::Parser;
use common::{Clock, Flags, Kind, Work};
use roclip::Result;
use roclip::backend::{Backend, Solo};
use roclip::encode::config::{ResNetConfig, VitConfig};
use roclip::encode::{ClipConfig, VisionConfig};
use roclip::flow::PackedTokens;
use roclip::train::step::Outcome;
use serde_json::json;
use std::num::NonZeroUsize;
use std::time::Instant;
use training::{BATCHES, LENGTHS, batches, trainer};

/// Speed of a whole training step of CLIP
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// A name or a file, as of --model
    #[arg(default_value = "ViT-B-32")]
    model: String,
    /// Pairs of a step
    #[arg(default_value_t = 32)]
    pairs: usize,
    /// Threads of the CPU
    #[arg(default_value_t = std::thread::available_parallelism().map_or(1, NonZeroUsize::get))]
    threads: usize,
    /// Steps that are timed
    #[arg(default_value_t = 3)]
    steps: usize,
}

fn main() {
    let arguments = Arguments::parse();
    arguments.flags.run(arguments.threads, &arguments).unwrap_or_else(|e| panic!("{e}"));
}

impl Work for &Arguments {
    fn on<D: Backend>(self, device: &D) -> Result<()> {
        let (config, pairs) = (ClipConfig::load(&self.model)?, self.pairs);
        let mut trainer = trainer(device, Solo, &config, pairs)?;
        let batches = batches(device, &config, pairs)?;
        let side = match self.flags.device {
            Kind::Cpu => 2048,
            Kind::Cuda => 8192,
            Kind::Sim => 64,
        };
        let clock = Clock::new(device)?;
        let before = clock.product(side)?;
        let (mut times, mut losses) = (Vec::new(), Vec::new());
        // each batch twice: a device may learn a kind of step when it comes a second time
        let warm_up = if self.flags.device == Kind::Cuda { 2 * BATCHES } else { 1 };
        for step in 0..warm_up + self.steps.max(1) {
            let (began, batch) = (Instant::now(), &batches[step % BATCHES]);
            // as a run does whose loader is ahead
            trainer.enqueue(batch, 0)?;
            trainer.prefetch(&batches[(step + 1) % BATCHES])?;
            let outcome = trainer.finish(batch)?;
            times.push(began.elapsed().as_secs_f64());
            match outcome {
                Outcome::Stepped(report) => losses.push(report.loss),
                Outcome::Refused(why) => panic!("step {step}: {} is not finite", why.what),
            }
        }
        times.drain(..warm_up);
        times.sort_by(f64::total_cmp);
        let product = clock.product(side)?.max(before);
        let work = batches.iter().map(|batch| flop(&config, &batch.captions)).sum::<f64>();
        self.tell(&device.name(), &times, &losses, work / BATCHES as f64, (side, product));
        Ok(())
    }
}

impl Arguments {
    fn tell(
        &self,
        device: &str,
        times: &[f64],
        losses: &[f64],
        flop: f64,
        (side, product): (usize, f64),
    ) {
        let (name, pairs) = (&self.model, self.pairs);
        let (least, median, most) = (times[0], times[times.len() / 2], times[times.len() - 1]);
        let (rate, share) = (flop / median, flop / median / product);
        println!("{name}, {pairs} pairs, {LENGTHS:?} tokens, {device}, {} steps", times.len());
        println!(
            "median {median:.4} s, least {least:.4} s, most {most:.4} s: {:.2} pairs/s",
            pairs as f64 / median
        );
        println!(
            "{:.1} GFLOP a step: {:.2} TFLOP/s, {:.0} % of the {side}³ product's {:.2} TFLOP/s",
            flop / 1e9,
            rate / 1e12,
            100.0 * share,
            product / 1e12
        );
        println!("losses {:.4} to {:.4}", losses[0], losses[losses.len() - 1]);
        self.flags.write(&json!({
            "device": device, "model": name, "pairs": pairs, "steps": times.len(),
            "median_s": median, "least_s": least, "most_s": most,
            "pairs_per_s": pairs as f64 / median, "flop": flop, "flop_per_s": rate,
            "product_flop_per_s": product, "share": share, "losses": losses,
        }));
    }
}

/// Operations of a linear map.
fn linear(rows: usize, inputs: usize, outputs: usize) -> f64 {
    2.0 * (rows * inputs * outputs) as f64
}

/// Operations of one residual block on a sequence, forward and backward.
fn block(tokens: usize, width: usize, hidden: usize, causal: f64) -> f64 {
    let linears = linear(tokens, width, 4 * width) + 2.0 * linear(tokens, width, hidden);
    3.0 * linears + causal * 7.0 * 2.0 * (tokens * tokens * width) as f64
}

/// Operations of the matrix products of a step, convolutions among them.
///
/// A linear map costs `2·rows·inputs·outputs` forward and twice that backward. Attention is two
/// products of `2·T²·C` forward and five backward, which recomputes the scores; a causal mask
/// halves them. Pictures take no gradient.
fn flop(config: &ClipConfig, captions: &PackedTokens) -> f64 {
    let text = &config.text_cfg;
    let image = match &config.vision_cfg {
        VisionConfig::Vit(vit) => flop_vit(vit, config.embed_dim),
        VisionConfig::ResNet(resnet) => flop_resnet(resnet, config.embed_dim),
    };
    let caption = |n: usize| {
        text.layers as f64 * block(captions.get(n).len(), text.width, text.hidden(), 0.5)
            + 3.0 * linear(1, text.width, config.embed_dim)
    };
    captions.len() as f64 * image + (0..captions.len()).map(caption).sum::<f64>()
}

fn flop_vit(vit: &VitConfig, features: usize) -> f64 {
    let patches = (vit.image_size / vit.patch_size).pow(2);
    vit.layers as f64 * block(patches + 1, vit.width, vit.hidden(), 1.0)
        + 2.0 * linear(patches, 3 * vit.patch_size.pow(2), vit.width)
        + 3.0 * linear(1, vit.width, features)
}

fn flop_resnet(resnet: &ResNetConfig, features: usize) -> f64 {
    let (mut pixels, width) = ((resnet.image_size / 2).pow(2), resnet.width);
    let (half, nine) = (width / 2, |c: usize| 9 * c);
    let mut work = 2.0 * linear(pixels, nine(3), half)
        + 3.0 * (linear(pixels, nine(half), half) + linear(pixels, nine(half), width));
    pixels /= 4;
    let mut inputs = width;
    for (stage, layers) in resnet.layers.into_iter().enumerate() {
        let planes = width << stage;
        for i in 0..layers {
            let before = linear(pixels, inputs, planes) + linear(pixels, nine(planes), planes);
            pixels /= if stage > 0 && i == 0 { 4 } else { 1 };
            let past = if i == 0 { linear(pixels, inputs, 4 * planes) } else { 0.0 };
            work += 3.0 * (before + linear(pixels, planes, 4 * planes) + past);
            inputs = 4 * planes;
        }
    }
    let keys_values = 2.0 * linear(pixels + 1, inputs, inputs);
    work + 3.0 * (keys_values + linear(1, inputs, inputs) + linear(1, inputs, features))
}
