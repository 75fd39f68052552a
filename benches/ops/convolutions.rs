//! The 3 × 3 convolutions of CLIP's ResNet.

use super::common::{Params, accs, acts, values};
use super::towers::act_bytes;
use super::{Bench, Cost, bench};
use roclip::Result;
use roclip::backend::ops::conv2d::{self, Conv2dShape, TAPS};
use roclip::backend::{Backend, View, ViewMut};

/// Forward and both gradients, of stride 1.
pub fn convolutions<D: Backend>(
    device: &D,
    [images, side, inputs, outputs]: [usize; 4],
) -> Result<Vec<Bench<D>>> {
    let shape = Conv2dShape { images, height: side, width: side, inputs, outputs, stride: 1 };
    let (pixels, weights) = (shape.pixels_in(), outputs * inputs * TAPS);
    let flop = Cost::Flop(2.0 * (pixels * weights) as f64);
    let title = |part: &str| format!("conv2d {part} {images}x{side}x{side} {inputs}x{outputs}");
    let (x, w) = (acts(device, pixels * inputs)?, Params::new(device, weights)?);
    let mut y = acts(device, pixels * outputs)?;
    let forward = bench::<D>(&title("forward"), flop, move |run| {
        conv2d::forward(run.device, shape, View::all(&x), w.all(), ViewMut::all(&mut y))?;
        run.hash(&y)
    });
    let (dy, w) = (acts(device, pixels * outputs)?, Params::new(device, weights)?);
    let mut dx = acts(device, pixels * inputs)?;
    let input = bench::<D>(&title("dx     "), flop, move |run| {
        let to = ViewMut::all(&mut dx);
        conv2d::backward_input(run.device, shape, View::all(&dy), w.all(), to)?;
        run.hash(&dx)
    });
    let (x, dy) = (acts(device, pixels * inputs)?, acts(device, pixels * outputs)?);
    let mut dw = accs(device, weights)?;
    let weight = bench::<D>(&title("dw     "), flop, move |run| {
        run.clear(&mut dw)?;
        let (x, dy, to) = (View::all(&x), View::all(&dy), ViewMut::all(&mut dw));
        conv2d::backward_weight(run.device, shape, x, dy, to)?;
        run.hash(&dw)
    });
    Ok(vec![forward, input, weight])
}

/// The stem's first one, of pictures, and its gradient: bytes, as 27 products an output are few.
pub fn of_pictures<D: Backend>(
    device: &D,
    [images, side, outputs]: [usize; 3],
) -> Result<Vec<Bench<D>>> {
    let shape = Conv2dShape { images, height: side, width: side, inputs: 3, outputs, stride: 2 };
    let (len, weights) = (shape.pixels_out() * outputs, outputs * 3 * TAPS);
    let read = 3 * shape.pixels_in() * size_of::<f32>();
    let bytes = Cost::Bytes(read as f64 + act_bytes::<D>(len));
    let title = |part: &str| format!("conv2d pictures {part} {images}x{side} 3x{outputs}");
    let (pictures, w) =
        (device.buffer(&values(3 * shape.pixels_in()))?, Params::new(device, weights)?);
    let mut y = acts(device, len)?;
    let forward = bench::<D>(&title("forward"), bytes, move |run| {
        let to = ViewMut::all(&mut y);
        conv2d::forward_pictures(run.device, shape, View::all(&pictures), w.all(), to)?;
        run.hash(&y)
    });
    let (pictures, dy) = (device.buffer(&values(3 * shape.pixels_in()))?, acts(device, len)?);
    let mut dw = accs(device, weights)?;
    let weight = bench::<D>(&title("dw     "), bytes, move |run| {
        run.clear(&mut dw)?;
        let (from, to) = ((View::all(&pictures), View::all(&dy)), ViewMut::all(&mut dw));
        conv2d::backward_weight_pictures(run.device, shape, from.0, from.1, to)?;
        run.hash(&dw)
    });
    Ok(vec![forward, weight])
}
