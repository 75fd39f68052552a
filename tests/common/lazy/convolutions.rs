//! The convolutions of CLIP's ResNet, done later.

use super::*;
use roclip::backend::ops::conv2d::{Conv2d, Conv2dShape};

later! { Conv2d:
    conv2d_forward(shape: by Conv2dShape, x: read f32, w: weight f32, y: write f32);
    conv2d_backward_input(shape: by Conv2dShape, dy: read f32, w: weight f32, dx: write f32);
    conv2d_backward_weight(shape: by Conv2dShape, x: read f32, dy: read f32, dw: write f32);
    conv2d_forward_pictures(shape: by Conv2dShape, images: read f32, w: weight f32, y: write f32);
    conv2d_backward_weight_pictures(shape: by Conv2dShape, images: read f32, dy: read f32,
                                    dw: write f32);
}
