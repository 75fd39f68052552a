//! Pictures and captions to features, and gradients of features to gradients of parameters.
//!
//! Written once over the backend's contracts. In every file the forward stands directly above its
//! backward; what the backward needs is a named struct, allocated once for the largest micro-batch.
//! Parameters carry open_clip's names and stand in its order.

pub mod config;
pub mod init;
pub mod linear;
pub mod layernorm;
pub mod attention;
pub mod mlp;
pub mod block;
pub mod transformer;
pub mod vit;
pub mod conv2d;
pub mod batchnorm;
pub mod bottleneck;
pub mod attention_pool;
pub mod resnet;
pub mod text;
pub mod embedder;

pub use attention::Packing;
pub use config::{ClipConfig, VisionConfig};
pub use embedder::{Embedder, EmbedderRoom};
pub use transformer::Keep;

use self::batchnorm::{NormRanks, Norms};
use crate::backend::ops::batchnorm::{self as ops, Statistics};
use crate::backend::ops::require;
use crate::backend::{Backend, Device, Element, Float, Slot, View, ViewMut};
use crate::error::Result;
use crate::flow::{Locks, PackedTokens, ParamTable};
use resnet::{ResNet, ResNetActivations, ResNetGradients};
use std::ops::Range;
pub use text::TextBatch;
use text::{Text, TextActivations, TextGradients, TextHead};
use vit::{Vit, VitActivations, VitGradients};

/// What a forward reads beside its input.
pub struct Pass<'a, D: Device> {
    /// Where it runs.
    pub device: &'a D,
    /// All parameters.
    pub weights: &'a D::Weights,
}

impl<D: Device> Clone for Pass<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for Pass<'_, D> {}

/// Told which places among all gradients are complete, so that they can be used while the rest
/// is computed.
pub type Complete<'a, D> =
    dyn FnMut(&mut <D as Device>::Buf<<D as Device>::Acc>, Range<usize>) -> Result<()> + 'a;

/// What a backward reads and adds to beside its input.
pub struct Backward<'a, D: Device> {
    /// Where it runs.
    pub device: &'a D,
    /// All parameters.
    pub weights: &'a D::Weights,
    /// All gradients, in the table's order; added to.
    pub grads: &'a mut D::Buf<D::Acc>,
    /// Told of blocks whose gradients are complete, if this is all that adds to them.
    pub complete: &'a mut Complete<'a, D>,
}

impl<D: Device> Backward<'_, D> {
    /// The same for a forward.
    pub fn forward(&self) -> Pass<'_, D> {
        Pass { device: self.device, weights: self.weights }
    }

    /// Nothing more is added to the gradients at this place.
    fn is_complete(&mut self, place: &Range<usize>) -> Result<()> {
        (self.complete)(self.grads, place.clone())
    }
}

/// Buffers are as large as the largest micro-batch needs; a smaller one uses their front.
fn first<D: Device, T: Element>(buf: &D::Buf<T>, len: usize) -> View<'_, D, T> {
    View::of(buf, 0..len)
}

fn first_mut<D: Device, T: Element>(buf: &mut D::Buf<T>, len: usize) -> ViewMut<'_, D, T> {
    ViewMut::of(buf, 0..len)
}

/// The image tower that a configuration asks for.
#[derive(Clone, Debug)]
enum ImageTower {
    Vit(Box<Vit>),
    ResNet(Box<ResNet>),
}

impl ImageTower {
    /// Values of one picture, `3·H·W`.
    fn image_values(&self) -> usize {
        match self {
            Self::Vit(vit) => vit.image_values(),
            Self::ResNet(resnet) => resnet.image_values(),
        }
    }
}

/// Both towers, as places in the table.
#[derive(Clone, Debug)]
struct Towers {
    image: ImageTower,
    text: Text,
}

impl Towers {
    /// The towers of a valid configuration, and the table in open_clip's order.
    fn new(config: &ClipConfig) -> (ParamTable, Self) {
        let mut table = ParamTable::default();
        let head = TextHead::new(&mut table, config);
        table.push("logit_scale", &[]);
        let features = config.embed_dim;
        let image = match &config.vision_cfg {
            VisionConfig::Vit(vit) => {
                ImageTower::Vit(Box::new(Vit::new(&mut table, vit, features, config.gelu())))
            }
            VisionConfig::ResNet(resnet) => {
                ImageTower::ResNet(Box::new(ResNet::new(&mut table, resnet, features)))
            }
        };
        let text = Text::new(&mut table, head, config);
        (table, Self { image, text })
    }
}

/// Activations and gradients of the image tower that a configuration asks for; no gradients where
/// all of it is locked.
enum ImageBuffers<D: Device> {
    Vit(Box<VitActivations<D>>, Option<Box<VitGradients<D>>>),
    ResNet(Box<ResNetActivations<D>>, Option<Box<ResNetGradients<D>>>),
}

/// Everything a micro-batch writes on its way through both towers and back.
struct Buffers<D: Device> {
    image: ImageBuffers<D>,
    text: TextActivations<D>,
    /// None where all of the tower is locked.
    dtext: Option<TextGradients<D>>,
}

impl<D: Device> Buffers<D> {
    fn new(
        device: &D,
        (table, towers): (&ParamTable, &Towers),
        max_pairs: usize,
        keep: Keep,
        locks: Locks,
    ) -> Result<Self> {
        // A tower without a backward keeps nothing for it.
        let kept = |whole: bool| if whole { Keep::Inputs } else { keep };
        let (whole_image, whole_text) = (locks.whole_image(), locks.whole_text());
        let (keep_image, keep_text) = (kept(whole_image), kept(whole_text));
        let image = match &towers.image {
            ImageTower::Vit(vit) => {
                let acts = VitActivations::new(device, vit, max_pairs, keep_image)?;
                let d = || VitGradients::new(device, vit, max_pairs).map(Box::new);
                ImageBuffers::Vit(Box::new(acts), (!whole_image).then(d).transpose()?)
            }
            ImageTower::ResNet(resnet) => {
                let acts = ResNetActivations::new(device, resnet, max_pairs, keep_image)?;
                let buffers = table.buffers_len();
                let d = || ResNetGradients::new(device, resnet, max_pairs, buffers).map(Box::new);
                ImageBuffers::ResNet(Box::new(acts), (!whole_image).then(d).transpose()?)
            }
        };
        let text = TextActivations::new(device, &towers.text, max_pairs, keep_text)?;
        let dtext = || TextGradients::new(device, &towers.text, max_pairs);
        Ok(Self { image, text, dtext: (!whole_text).then(dtext).transpose()? })
    }
}

/// A CLIP model: two towers and room for the activations of one micro-batch. The parameters
/// themselves are the caller's.
pub struct Clip<D: Device> {
    table: ParamTable,
    towers: Towers,
    buffers: Buffers<D>,
    config: ClipConfig,
    max_pairs: usize,
    locks: Locks,
    /// See [`Clip::set_statistics`].
    statistics: Statistics,
    /// Pictures of the last image forward; 0 where there was none.
    images: usize,
    /// Captions on the device; 0 where there are none.
    captions: usize,
}

impl<D: Device> Clip<D> {
    /// Room for micro-batches of up to `max_pairs` pictures and as many captions of any length.
    /// What is kept of a forward changes memory and time, never a bit of any result.
    ///
    /// # Errors
    /// [`crate::Error::Option`] where the configuration cannot be built; [`crate::Error::Shape`]
    /// where `max_pairs` is 0 or its tokens cannot be counted in 32 bits; [`crate::Error::Device`]
    /// where memory does not suffice.
    pub fn new(device: &D, config: &ClipConfig, max_pairs: usize, keep: Keep) -> Result<Self> {
        Self::locked(device, config, max_pairs, keep, Locks::default())
    }

    /// As [`Clip::new`], of which `locks` names the parameters that training leaves as they are.
    /// No backward goes further than what is trained, and a tower that is locked whole has none,
    /// nor room for one; its batch norms always use the running statistics, which do not move.
    ///
    /// # Errors
    /// Those of [`Clip::new`]; [`crate::Error::Option`] as [`ClipConfig::check_locks`].
    pub fn locked(
        device: &D,
        config: &ClipConfig,
        max_pairs: usize,
        keep: Keep,
        locks: Locks,
    ) -> Result<Self> {
        check_max_pairs(config, max_pairs)?;
        config.check_locks(locks)?;
        let (mut table, towers) = Towers::new(config);
        table.lock(locks);
        let buffers = Buffers::new(device, (&table, &towers), max_pairs, keep, locks)?;
        let (config, statistics) = (config.clone(), Statistics::default());
        let (images, captions) = (0, 0);
        Ok(Self { table, towers, buffers, config, max_pairs, locks, statistics, images, captions })
    }

    /// What training leaves as it is.
    pub fn locks(&self) -> Locks {
        self.locks
    }

    /// What it was built from.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Most pairs of a micro-batch.
    pub fn max_pairs(&self) -> usize {
        self.max_pairs
    }

    /// Has batch norms use running statistics, as at first and as evaluation wants it, or those of
    /// the batch, as training does: PyTorch's `eval()` and `train()`. Towers without batch norms
    /// take no notice.
    pub fn set_statistics(&mut self, statistics: Statistics) {
        self.statistics = statistics;
    }

    fn norms<'a>(&self, ranks: Option<&'a dyn NormRanks<D>>) -> Norms<'a, D> {
        let whole = self.locks.whole_image();
        let statistics = if whole { Statistics::Running } else { self.statistics };
        Norms { statistics, buffers: self.table.len(), ranks }
    }

    /// What the batches of the backwards showed since [`Clip::forget_batches`], in the order of the
    /// table's buffers; none without batch norms that learn.
    pub fn observed(&mut self) -> Option<ViewMut<'_, D, D::Acc>> {
        match &mut self.buffers.image {
            ImageBuffers::ResNet(_, Some(d)) => Some(ViewMut::all(&mut d.norms.observed)),
            _ => None,
        }
    }

    /// All parameters, in the order of open_clip's state dict.
    pub fn params(&self) -> &ParamTable {
        &self.table
    }
}

impl<D: Backend> Clip<D> {
    /// Features `out` `[n, D]`, not normalised, of `images` `[n, 3, H, W]`; 1 ≤ n ≤ `max_pairs`.
    /// Batch norms that use the batch's statistics see those of all `ranks` as one batch.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where an extent disagrees; those of the device.
    pub fn encode_image(
        &mut self,
        device: &D,
        weights: &D::Weights,
        images: View<'_, D, f32>,
        ranks: Option<&dyn NormRanks<D>>,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        self.images = 0;
        let (values, max) = (self.towers.image.image_values(), self.max_pairs);
        let norms = self.norms(ranks);
        let n = images.len / values;
        let fits = (1..=max).contains(&n) && images.len == n * values;
        require("encode_image", fits, "images must be [n, 3, H, W], 1 <= n <= max_pairs", || {
            format!("{} values, {values} a picture, max_pairs {max}", images.len)
        })?;
        let pass = Pass { device, weights };
        match (&self.towers.image, &mut self.buffers.image) {
            (ImageTower::Vit(vit), ImageBuffers::Vit(acts, _)) => {
                vit.forward(pass, images, acts, out)?;
            }
            (ImageTower::ResNet(resnet), ImageBuffers::ResNet(acts, _)) => {
                resnet.forward(pass, norms, images, acts, out)?;
            }
            _ => unreachable!("buffers are the tower's"),
        }
        self.images = n;
        Ok(())
    }

    /// Adds the gradients of the image tower's parameters to `grads` (all parameters, in the
    /// table's order), from `dout` `[n, D]`, the gradient by the features of the last
    /// [`Clip::encode_image`], whose `images` must still be what they were, and whose `ranks`
    /// are meant again; none for what is locked. Tells of blocks whose gradients are `complete`; of
    /// other parameters they are when it returns. Panics where there was none, or of another n.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where an extent disagrees; those of the device.
    #[allow(clippy::too_many_arguments, reason = "what its forward had, and gradients")]
    pub fn backward_image<'a>(
        &mut self,
        device: &'a D,
        weights: &'a D::Weights,
        images: View<'_, D, f32>,
        ranks: Option<&dyn NormRanks<D>>,
        dout: View<'_, D, D::Act>,
        grads: &'a mut D::Buf<D::Acc>,
        complete: &'a mut Complete<'a, D>,
    ) -> Result<()> {
        let (n, values) = (self.images, self.towers.image.image_values());
        assert!(n > 0, "backward_image without encode_image");
        assert_eq!(dout.len, n * self.config.embed_dim, "dout of the last encode_image");
        assert_eq!(images.len, n * values, "images of the last encode_image");
        let (norms, pass) = (self.norms(ranks), &mut Backward { device, weights, grads, complete });
        let trained = self.locks.image.unwrap_or(usize::MAX);
        match (&self.towers.image, &mut self.buffers.image) {
            (ImageTower::Vit(vit), ImageBuffers::Vit(acts, Some(d))) => {
                vit.backward(pass, trained, acts, dout, d)
            }
            (ImageTower::ResNet(resnet), ImageBuffers::ResNet(acts, Some(d))) => {
                resnet.backward(pass, norms, images, acts, dout, d)
            }
            _ => Ok(()),
        }
    }

    /// Forgets what batches showed; a step begins with it.
    ///
    /// # Errors
    /// Those of the device.
    pub fn forget_batches(&mut self, device: &D) -> Result<()> {
        self.observed().map_or(Ok(()), |observed| device.zero(observed))
    }

    /// Moves the running statistics by what `passes` batches showed, all ranks' together, where
    /// `norm` `[1]`, that of all gradients, is finite.
    ///
    /// # Errors
    /// Those of the device.
    pub fn update_running(
        &mut self,
        device: &D,
        passes: usize,
        norm: View<'_, D, D::Acc>,
        weights: &mut D::Weights,
    ) -> Result<()> {
        let (offset, len) = (self.table.len(), self.table.buffers_len());
        let ImageBuffers::ResNet(_, Some(d)) = &self.buffers.image else { return Ok(()) };
        let (observed, running) = (View::all(&d.norms.observed), Slot { offset, len });
        ops::update_running(device, observed, passes, norm, weights, running)
    }

    /// Features `out` `[n, D]`, not normalised, of `captions`; 1 ≤ n ≤ `max_pairs`.
    ///
    /// # Errors
    /// Those of [`Clip::upload_captions`] and [`Clip::encode_captions`].
    pub fn encode_text(
        &mut self,
        device: &D,
        weights: &D::Weights,
        captions: &PackedTokens,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        self.upload_captions(device, captions)?;
        self.encode_captions(device, weights, out)
    }

    /// Brings `captions` to the device, 1 to `max_pairs` of them: the part of
    /// [`Clip::encode_text`] that reads what is on the host.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where a caption is empty or longer than the context, or a token id
    /// is not in the vocabulary: before the device sees any of it. Those of the device.
    pub fn upload_captions(&mut self, device: &D, captions: &PackedTokens) -> Result<TextBatch> {
        self.captions = 0;
        let (n, max) = (captions.len(), self.max_pairs);
        require("encode_text", (1..=max).contains(&n), "1 to max_pairs captions", || {
            format!("{n} captions, max_pairs {max}")
        })?;
        let batch = self.towers.text.upload(device, captions, &mut self.buffers.text)?;
        self.captions = n;
        Ok(batch)
    }

    /// Features `out` `[n, D]`, not normalised, of the captions of the last
    /// [`Clip::upload_captions`]. Panics where there was none.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where an extent disagrees; those of the device.
    pub fn encode_captions(
        &mut self,
        device: &D,
        weights: &D::Weights,
        out: ViewMut<'_, D, D::Act>,
    ) -> Result<()> {
        assert!(self.captions > 0, "encode_captions without upload_captions");
        self.towers.text.forward(Pass { device, weights }, &mut self.buffers.text, out)
    }

    /// Adds the gradients of the text tower's parameters to `grads` (all parameters, in the table's
    /// order), from `dout` `[n, D]`, the gradient by the features of the last
    /// [`Clip::encode_text`]; none for what is locked. Tells what is `complete` as
    /// [`Clip::backward_image`]. Panics where there was none, or of another n.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where an extent disagrees; those of the device.
    pub fn backward_text<'a>(
        &mut self,
        device: &'a D,
        weights: &'a D::Weights,
        dout: View<'_, D, D::Act>,
        grads: &'a mut D::Buf<D::Acc>,
        complete: &'a mut Complete<'a, D>,
    ) -> Result<()> {
        assert!(self.captions > 0, "backward_text without encode_text");
        assert_eq!(dout.len, self.captions * self.config.embed_dim, "dout of the last encode_text");
        let Some(d) = &mut self.buffers.dtext else { return Ok(()) };
        let pass = &mut Backward { device, weights, grads, complete };
        let trained = self.locks.text.unwrap_or(usize::MAX);
        self.towers.text.backward(pass, trained, &mut self.buffers.text, dout, d)
    }
}

/// The parameters of a configuration, in the order of open_clip's state dict.
///
/// # Errors
/// [`crate::Error::Option`] where the configuration cannot be built.
pub fn params(config: &ClipConfig) -> Result<ParamTable> {
    config.validate()?;
    Ok(Towers::new(config).0)
}

/// Freshly drawn parameters ([`init::values`]), on the device.
///
/// # Errors
/// [`crate::Error::Option`] where the configuration cannot be built; [`crate::Error::Device`] where
/// memory does not suffice.
pub fn init<D: Device>(device: &D, config: &ClipConfig, seed: u64) -> Result<D::Weights> {
    weights(device, &init::values(&params(config)?, config, seed))
}

/// Parameters and buffers with the given values, on the device.
///
/// # Errors
/// [`crate::Error::Device`] where memory does not suffice.
pub fn weights<D: Device>(device: &D, values: &[f32]) -> Result<D::Weights> {
    let values: Vec<D::Acc> = values.iter().map(|&v| Float::from_f64(f64::from(v))).collect();
    device.weights(&values)
}

/// Whether row numbers of a micro-batch fit into 32 bits.
fn check_max_pairs(config: &ClipConfig, max_pairs: usize) -> Result<()> {
    config.validate()?;
    let image = config.vision_cfg.tokens();
    let tokens = max_pairs.saturating_mul(image.max(config.text_cfg.context_length));
    let fits = max_pairs > 0 && tokens <= u32::MAX as usize;
    require("encode", fits, "max_pairs is at least 1, its tokens below 2^32", || {
        format!("max_pairs {max_pairs}, {tokens} tokens")
    })
}
