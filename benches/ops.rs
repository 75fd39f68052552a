//! Speed of every operation, at the shapes of ViT-B/32 and its text tower, and of ResNet-50.
//!
//! `cargo bench --bench ops -- [--quick] [--device cpu|cuda|sim] [--kernels auto|...]
//! [--only pool|loss|rest] [--json FILE] [threads]`. One line an operation: median and least time,
//! the rate, its share of the limit measured in the same run (the largest square product for what
//! computes, a copy of memory for what moves, and for matching and the loss the library's product
//! of the same shape), and a hash of the result, which must not change with the threads. Bytes are
//! those that must be read and written once, in the device's types. Calls are enqueued many at a
//! time and waited for once.

#[path = "common/mod.rs"]
mod common;
#[path = "ops/convolutions.rs"]
mod convolutions;
#[path = "ops/resnet.rs"]
mod resnet;
#[path = "ops/similarity.rs"]
mod similarity;
#[path = "ops/towers.rs"]
mod towers;
#[path = "ops/training.rs"]
mod training;

use clap::Parser;
use common::{Clock, Flags, Kind, Work};
use roclip::Result;
use roclip::backend::ops::attention::Mask;
use roclip::backend::{Backend, Float, View, ViewMut};
use serde_json::{Value, json};

/// What an operation spends its time on.
#[derive(Clone, Copy)]
enum Cost {
    /// Floating-point operations.
    Flop(f64),
    /// Bytes read and written.
    Bytes(f64),
    /// Floating-point operations of products whose rate is the limit of what follows.
    Limit(f64),
    /// Floating-point operations, to compare with the last limit.
    Beside(f64),
}

/// One operation at one shape, ready to run again and again.
pub struct Bench<D: Backend> {
    name: String,
    cost: Cost,
    /// Bytes that it needs beyond operands and results, where that is of interest.
    extra: usize,
    /// Runs it once; the result's hash, if asked for.
    pub body: Body<D>,
}

/// One call of an operation.
pub type Body<D> = Box<dyn FnMut(&Run<'_, D>) -> Result<u64>>;

fn bench<D: Backend>(
    name: &str,
    cost: Cost,
    body: impl FnMut(&Run<'_, D>) -> Result<u64> + 'static,
) -> Bench<D> {
    Bench { name: name.into(), cost, extra: 0, body: Box::new(body) }
}

/// One run of a body.
pub struct Run<'a, D: Backend> {
    /// Where.
    pub device: &'a D,
    /// Whether the result is hashed; that takes longer than some operations.
    pub hashed: bool,
}

impl<D: Backend> Run<'_, D> {
    /// What is added to starts at zero, where the result is hashed.
    fn clear<T: Float>(&self, buf: &mut D::Buf<T>) -> Result<()> {
        if self.hashed { self.device.zero(ViewMut::all(buf)) } else { Ok(()) }
    }

    /// FNV-1a of the bits in f32; 0 where nobody asked.
    fn hash<T: Float>(&self, buf: &D::Buf<T>) -> Result<u64> {
        if !self.hashed {
            return Ok(0);
        }
        Ok(fnv(self.device.to_vec::<T>(View::all(buf))?))
    }
}

/// FNV-1a of the bits in f32.
fn fnv<T: Float>(values: Vec<T>) -> u64 {
    let step = |hash: u64, x: T| {
        (hash ^ u64::from((x.to_f64() as f32).to_bits())).wrapping_mul(0x100_0000_01b3)
    };
    values.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// Some of the operations.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Matching, and what fills the pool.
    Pool,
    /// The contrastive loss.
    Loss,
    /// All others.
    Rest,
}

/// What the operations are run on.
pub struct Shapes {
    /// All parts where there is none.
    only: Option<Part>,
    /// Side of the square product and bytes of the copy that are the limits.
    limits: [usize; 2],
    /// Rows, inputs, outputs.
    linears: &'static [(&'static str, [usize; 3])],
    /// Rows, width.
    layernorm: [usize; 2],
    gelu: usize,
    /// Sequences, tokens of each, heads of 64.
    attentions: &'static [(&'static str, [usize; 3], Mask)],
    /// Pairs, width.
    contrastives: &'static [[usize; 2]],
    /// Queries, rows of the pool, width.
    pools: &'static [[usize; 3]],
    /// Captions, tokens of each, vocabulary, width.
    captions: [usize; 4],
    /// Images, side, side of a patch, width.
    images: [usize; 4],
    /// Images, side, channels in and out.
    convolutions: &'static [[usize; 4]],
    /// Images, side, channels out.
    of_pictures: [usize; 3],
    /// Images, side, channels.
    batchnorms: &'static [[usize; 3]],
    /// Images, side, channels.
    avg_pool: [usize; 3],
    /// Images, tokens of each, heads, width of a head.
    attention_pool: [usize; 4],
    /// Pairs, width.
    embeddings: [usize; 2],
    parameters: usize,
}

impl Shapes {
    /// Odd sizes just past the blocks, done in a moment.
    pub const QUICK: Shapes = Shapes {
        only: None,
        limits: [192, 1 << 20],
        linears: &[("odd", [197, 391, 67])],
        layernorm: [67, 131],
        gelu: 33_001,
        attentions: &[("full", [3, 67, 3], Mask::Full), ("causal", [5, 77, 2], Mask::Causal)],
        contrastives: &[[259, 33]],
        pools: &[[67, 515, 33]],
        captions: [5, 7, 131, 19],
        images: [3, 12, 4, 19],
        convolutions: &[[3, 9, 24, 40]],
        of_pictures: [3, 20, 8],
        batchnorms: &[[3, 13, 19], [1, 9, 72]],
        avg_pool: [3, 6, 19],
        attention_pool: [3, 7, 3, 11],
        embeddings: [67, 33],
        parameters: 33_333,
    };

    /// ViT-B/32 with 32 pairs.
    const CPU: Shapes = Shapes {
        only: None,
        limits: [2048, 1 << 27],
        linears: &[
            ("qkv", [1600, 768, 2304]),
            ("proj", [1600, 768, 768]),
            ("fc1", [1600, 768, 3072]),
            ("fc2", [1600, 3072, 768]),
            ("patch", [1568, 3072, 768]),
        ],
        layernorm: [1600, 768],
        gelu: 1600 * 3072,
        attentions: &[("image", [32, 50, 12], Mask::Full), ("text", [32, 77, 8], Mask::Causal)],
        contrastives: &[[1024, 512]],
        pools: &[[32, 16_384, 512]],
        captions: [32, 20, 49_408, 512],
        images: [32, 224, 32, 768],
        convolutions: &[[8, 56, 64, 64], [8, 14, 256, 256]],
        of_pictures: [8, 224, 32],
        batchnorms: &[[32, 56, 64]],
        avg_pool: [32, 56, 64],
        attention_pool: [32, 50, 32, 64],
        embeddings: [1024, 512],
        parameters: 1 << 24,
    };

    /// ViT-B/32 with 1,024 pairs and captions of 14 tokens; what is bound by memory does not fit
    /// a cache. Attention also at the sequences of ViT-B/16 and at captions padded to 77.
    const GPU: Shapes = Shapes {
        only: None,
        limits: [8192, 1 << 30],
        linears: &[
            ("qkv", [51_200, 768, 2304]),
            ("proj", [51_200, 768, 768]),
            ("fc1", [51_200, 768, 3072]),
            ("fc2", [51_200, 3072, 768]),
            ("patch", [50_176, 3072, 768]),
            ("text qkv", [14_336, 512, 1536]),
            ("text proj", [14_336, 512, 512]),
            ("text fc1", [14_336, 512, 2048]),
            ("text fc2", [14_336, 2048, 512]),
        ],
        layernorm: [51_200, 768],
        gelu: 51_200 * 3072,
        attentions: &[
            ("image", [1024, 50, 12], Mask::Full),
            ("image", [256, 197, 12], Mask::Full),
            ("text", [1024, 14, 8], Mask::Causal),
            ("text", [1024, 77, 8], Mask::Causal),
        ],
        contrastives: &[
            [1024, 512],
            [32_768, 512],
            [32_768, 1024],
            [65_536, 512],
            [65_536, 1024],
            [262_144, 512],
        ],
        pools: &[[512, 20_000, 1024], [4096, 100_000, 1024], [32_768, 1_000_000, 512]],
        captions: [1024, 14, 49_408, 512],
        images: [1024, 224, 32, 768],
        // the stem; of each stage the first block's, where it is larger, and the others'
        convolutions: &[
            [256, 112, 32, 32],
            [256, 112, 32, 64],
            [256, 56, 64, 64],
            [256, 56, 128, 128],
            [256, 28, 128, 128],
            [256, 28, 256, 256],
            [256, 14, 256, 256],
            [256, 14, 512, 512],
            [256, 7, 512, 512],
        ],
        of_pictures: [256, 224, 32],
        // the first of the stem, the last of the first stage, and the last
        batchnorms: &[[256, 112, 32], [256, 56, 256], [1024, 7, 2048]],
        avg_pool: [256, 56, 256],
        attention_pool: [1024, 50, 32, 64],
        embeddings: [32_768, 512],
        // rounded up as a table of parameters is
        parameters: 151_277_376,
    };
}

/// Makes all benches, a few at a time, so that a device need not hold the buffers of all.
///
/// # Errors
/// Whatever the device refuses.
pub fn each<D: Backend>(
    device: &D,
    shapes: &Shapes,
    mut visit: impl FnMut(Bench<D>),
) -> Result<()> {
    let mut group = |benches: Vec<Bench<D>>| benches.into_iter().for_each(&mut visit);
    let wanted = |part| shapes.only.is_none_or(|only| only == part);
    if wanted(Part::Loss) {
        for &shape in shapes.contrastives {
            group(similarity::contrastives(device, shape)?);
        }
    }
    if wanted(Part::Pool) {
        for &shape in shapes.pools {
            group(similarity::pools(device, shape)?);
        }
    }
    if !wanted(Part::Rest) {
        return Ok(());
    }
    for &(name, shape) in shapes.linears {
        group(towers::linears(device, name, shape)?);
    }
    group(towers::layernorms(device, shapes.layernorm)?);
    group(towers::gelus(device, shapes.gelu)?);
    for &(name, shape, mask) in shapes.attentions {
        group(towers::attentions(device, name, shape, mask)?);
    }
    group(towers::embeddings(device, shapes.captions)?);
    group(towers::patches(device, shapes.images)?);
    for &shape in shapes.convolutions {
        group(convolutions::convolutions(device, shape)?);
    }
    group(convolutions::of_pictures(device, shapes.of_pictures)?);
    for &shape in shapes.batchnorms {
        group(resnet::batchnorms(device, shape)?);
    }
    group(resnet::avg_pools(device, shapes.avg_pool)?);
    group(resnet::attention_pools(device, shapes.attention_pool)?);
    group(training::lengths_and_rows(device, shapes.embeddings)?);
    group(training::updates(device, shapes.parameters)?);
    Ok(())
}

/// Runs all and prints a line for each; the figures, and how many were refused.
///
/// # Errors
/// Whatever the device refuses outside the operations.
pub fn report<D: Backend>(device: &D, shapes: &Shapes) -> Result<(Value, usize)> {
    let clock = Clock::new(device)?;
    let [compute, memory] = [clock.product(shapes.limits[0])?, clock.copy(shapes.limits[1])?];
    let giga = 1e-9;
    let (product, copy) = (compute * giga, memory * giga);
    println!("{}: product {product:.1} GFLOP/s, copy {copy:.1} GB/s", device.name());
    let (mut figures, mut refused, mut beside) = (Vec::new(), 0, compute);
    each(device, shapes, |mut bench| {
        let name = bench.name.clone();
        match measure(&clock, device, &mut bench) {
            Ok((hash, times)) => {
                figures.push(line(&bench, hash, &times, [compute, memory, beside]));
                if let Cost::Limit(flop) = bench.cost {
                    beside = flop / times[0];
                }
            }
            Err(reason) => {
                println!("{name:44} refused: {reason}");
                refused += 1;
            }
        }
    })?;
    let limits = json!({ "product_flop_per_s": compute, "copy_bytes_per_s": memory });
    Ok((json!({ "device": device.name(), "limits": limits, "ops": figures }), refused))
}

/// The result's hash, and the times.
fn measure<D: Backend>(
    clock: &Clock<'_, D>,
    device: &D,
    bench: &mut Bench<D>,
) -> Result<(u64, Vec<f64>)> {
    let hash = (bench.body)(&Run { device, hashed: true })?;
    let run = Run { device, hashed: false };
    Ok((hash, clock.times(|| (bench.body)(&run).map(drop))?))
}

fn line<D: Backend>(bench: &Bench<D>, hash: u64, times: &[f64], limits: [f64; 3]) -> Value {
    let (least, median) = (times[0], times[times.len() / 2]);
    let (work, unit, limit) = match bench.cost {
        Cost::Flop(flop) | Cost::Limit(flop) => (flop, "FLOP/s", limits[0]),
        Cost::Bytes(bytes) => (bytes, "B/s", limits[1]),
        Cost::Beside(flop) => (flop, "FLOP/s", limits[2]),
    };
    let (rate, share) = (work / least, work / least / limit);
    println!(
        "{:44} {:9.3} ms  least {:9.3} ms  {:8.1} G{unit:6} {:4.0} %  {hash:016x}",
        bench.name,
        median * 1e3,
        least * 1e3,
        rate / 1e9,
        100.0 * share
    );
    let name = bench.name.split_whitespace().collect::<Vec<_>>().join(" ");
    json!({
        "name": name, "median_ms": median * 1e3, "least_ms": least * 1e3,
        "samples": times.len(), "work": work, "unit": unit, "share": share,
        "hash": format!("{hash:016x}"), "extra_bytes": bench.extra,
    })
}

/// Speed of every operation, at the shapes of ViT-B/32 and its text tower
#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    flags: Flags,
    /// Small odd shapes; the emulated GPU knows no others
    #[arg(long)]
    quick: bool,
    /// Only these operations
    #[arg(long, value_enum)]
    only: Option<Part>,
    /// Threads of the CPU
    #[arg(default_value_t = 1)]
    threads: usize,
}

impl Work for &Arguments {
    fn on<D: Backend>(self, device: &D) -> Result<()> {
        let shapes = match self.flags.device {
            Kind::Cpu if !self.quick => Shapes::CPU,
            Kind::Cuda if !self.quick => Shapes::GPU,
            _ => Shapes::QUICK,
        };
        let shapes = Shapes { only: self.only, ..shapes };
        let (mut figures, refused) = report(device, &shapes)?;
        figures["kernels"] = format!("{:?}", self.flags.kernels).to_lowercase().into();
        self.flags.write(&figures);
        assert_eq!(refused, 0, "operations were refused");
        Ok(())
    }
}

#[allow(dead_code, reason = "the tests include this file and call its parts")]
fn main() {
    let arguments = Arguments::parse();
    arguments.flags.run(arguments.threads, &arguments).unwrap_or_else(|e| panic!("{e}"));
}
