//! Pictures and captions in, features on the host out: the towers for whoever does not train.

use super::Clip;
use crate::backend::{Backend, Device, Float, View, ViewMut};
use crate::error::Result;
use crate::flow::PackedTokens;

/// What an [`Embedder`] needs on the device beside the model.
pub struct EmbedderRoom<D: Device> {
    /// `[N, 3, H, W]`.
    images: D::Buf<f32>,
    /// `[N, D]`.
    features: D::Buf<D::Act>,
}

impl<D: Device> EmbedderRoom<D> {
    /// Room for as many pictures, or captions, as one pass of the model takes.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &D, clip: &Clip<D>) -> Result<Self> {
        let (n, config) = (clip.max_pairs(), clip.config());
        let side = config.vision_cfg.image_size();
        Ok(Self {
            images: device.alloc(n * 3 * side * side)?,
            features: device.alloc(n * config.embed_dim)?,
        })
    }
}

/// A model on its device that only looks: features, not normalised, of any number of inputs.
pub struct Embedder<'a, D: Device> {
    device: &'a D,
    clip: &'a mut Clip<D>,
    weights: &'a D::Weights,
    room: EmbedderRoom<D>,
    /// Called after each pass.
    on_pass: &'a dyn Fn(),
}

impl<'a, D: Backend> Embedder<'a, D> {
    /// Borrows a model, of a trainer or read from files.
    ///
    /// # Errors
    /// [`crate::Error::Device`] where memory does not suffice.
    pub fn new(device: &'a D, clip: &'a mut Clip<D>, weights: &'a D::Weights) -> Result<Self> {
        let room = EmbedderRoom::new(device, clip)?;
        Ok(Self { device, clip, weights, room, on_pass: &|| {} })
    }

    /// Calls `on_pass` after each pass, for whoever wants to know that it gets on.
    pub fn telling(self, on_pass: &'a dyn Fn()) -> Self {
        Self { on_pass, ..self }
    }

    /// `D`, values of a feature.
    pub fn width(&self) -> usize {
        self.clip.config().embed_dim
    }

    /// Features `[n, D]` of pictures `[n, 3, H, W]`. Panics where these are no whole pictures.
    ///
    /// # Errors
    /// Those of the device.
    pub fn images(&mut self, pixels: &[f32]) -> Result<Vec<f32>> {
        let picture = 3 * self.clip.config().vision_cfg.image_size().pow(2);
        assert!(pixels.len().is_multiple_of(picture), "pixels are [n, 3, H, W]");
        let (width, max) = (self.width(), self.clip.max_pairs());
        let mut features = Vec::with_capacity(pixels.len() / picture * width);
        for pixels in pixels.chunks(max * picture) {
            let EmbedderRoom { images, features: out } = &mut self.room;
            self.device.upload(pixels, ViewMut::of(images, 0..pixels.len()))?;
            let (input, rows) = (View::of(images, 0..pixels.len()), pixels.len() / picture);
            let out = ViewMut::of(out, 0..rows * width);
            self.clip.encode_image(self.device, self.weights, input, None, out)?;
            self.download(rows, &mut features)?;
        }
        Ok(features)
    }

    /// Features `[n, D]` of captions.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] where a caption is empty or longer than the model's context, or a
    /// token id is not in its vocabulary; those of the device.
    pub fn texts(&mut self, captions: &PackedTokens) -> Result<Vec<f32>> {
        let (width, max) = (self.width(), self.clip.max_pairs());
        let mut features = Vec::with_capacity(captions.len() * width);
        let mut pass = PackedTokens::new();
        for from in (0..captions.len()).step_by(max) {
            pass.clear();
            let to = captions.len().min(from + max);
            (from..to).for_each(|n| pass.push(captions.get(n)));
            let out = ViewMut::of(&mut self.room.features, 0..pass.len() * width);
            self.clip.encode_text(self.device, self.weights, &pass, out)?;
            self.download(pass.len(), &mut features)?;
        }
        Ok(features)
    }

    fn download(&self, rows: usize, to: &mut Vec<f32>) -> Result<()> {
        let rows = View::of(&self.room.features, 0..rows * self.width());
        to.extend(self.device.to_vec(rows)?.into_iter().map(|x| x.to_f64() as f32));
        (self.on_pass)();
        Ok(())
    }
}

/// Brings rows of `width` values to length 1; one of zeros stays.
pub fn normalize(rows: &mut [f32], width: usize) {
    for row in rows.chunks_exact_mut(width) {
        let norm = norm(row);
        row.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
    }
}

/// Cosine of the angle between two features; 0 where one is of length 0.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    dot / (norm(a) * norm(b))
}

/// Length of a row, never 0.
fn norm(row: &[f32]) -> f64 {
    row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt().max(1e-12)
}
