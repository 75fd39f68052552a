//! Initial parameters, distribution by distribution as open_clip 3.3.0 draws them.
//!
//! The text tower has an initialisation of its own (OpenAI's); open_clip leaves the blocks of the
//! image tower to the defaults of PyTorch's modules, and so do we.

use super::config::{ClipConfig, ResNetConfig, VisionConfig, VitConfig};
use crate::flow::{Param, ParamTable, Tower};
use crate::rng::{Domain, Rng};

/// How the values of one tensor are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Draw {
    /// All the same.
    Constant(f64),
    /// Mean 0, this standard deviation.
    Normal(f64),
    /// From minus to plus this bound.
    Uniform(f64),
}

/// Initial values of all parameters and buffers, as the weights hold them. Parameter `i` has the
/// stream `(seed, Init, 0, i)` to itself. Running statistics begin as those of the normal
/// distribution.
pub fn values(table: &ParamTable, config: &ClipConfig, seed: u64) -> Vec<f32> {
    let mut values = vec![0.0; table.weights_len()];
    for buffer in table.buffers().filter(|buffer| buffer.name.ends_with("running_var")) {
        values[buffer.slot.range()].fill(1.0);
    }
    for (i, param) in table.iter().enumerate() {
        let mut rng = Rng::new(seed, Domain::Init, 0, i as u64);
        let draw = draw(param, config);
        values[param.slot.range()].fill_with(|| match draw {
            Draw::Constant(value) => value as f32,
            Draw::Normal(std) => (std * rng.normal()) as f32,
            Draw::Uniform(bound) => rng.range(-bound, bound) as f32,
        });
    }
    values
}

fn draw(param: &Param, config: &ClipConfig) -> Draw {
    let name = param.name.as_str();
    let layer_norm = ["ln_pre.", "ln_post.", "ln_final.", "ln_1.", "ln_2."];
    if layer_norm.iter().any(|norm| name.contains(norm)) {
        return Draw::Constant(if name.ends_with("weight") { 1.0 } else { 0.0 });
    }
    match param.tower() {
        Tower::Shared => Draw::Constant((1.0f64 / 0.07).ln()),
        Tower::Image => match &config.vision_cfg {
            VisionConfig::Vit(vit) => draw_vit(param, vit),
            VisionConfig::ResNet(resnet) => draw_resnet(param, resnet),
        },
        Tower::Text => draw_text(name, config),
    }
}

/// The name without what says which tower and which block.
fn role(name: &str) -> &str {
    match name.split_once("resblocks.") {
        Some((_, block)) => block.split_once('.').map_or(block, |(_, role)| role),
        None => name.strip_prefix("visual.").unwrap_or(name),
    }
}

/// `VisionTransformer`: three embeddings of its own, else PyTorch's defaults.
fn draw_vit(param: &Param, cfg: &VitConfig) -> Draw {
    let width = cfg.width as f64;
    match role(&param.name) {
        // torch.nn.MultiheadAttention: Xavier uniform over (C + 3C).
        "attn.in_proj_weight" => Draw::Uniform((6.0 / (4.0 * width)).sqrt()),
        "attn.in_proj_bias" | "attn.out_proj.bias" => Draw::Constant(0.0),
        // torch.nn.Linear and Conv2d: one over the root of the inputs of an output.
        "attn.out_proj.weight" | "mlp.c_fc.weight" | "mlp.c_fc.bias" => {
            Draw::Uniform(width.powf(-0.5))
        }
        "mlp.c_proj.weight" | "mlp.c_proj.bias" => Draw::Uniform((cfg.hidden() as f64).powf(-0.5)),
        "conv1.weight" => {
            Draw::Uniform((param.shape[1..].iter().product::<usize>() as f64).powf(-0.5))
        }
        "class_embedding" | "positional_embedding" | "proj" => Draw::Normal(width.powf(-0.5)),
        _ => unreachable!("{} has no initialisation", param.name),
    }
}

/// `ModifiedResNet.init_parameters`: each block begins as its way past; else PyTorch's defaults.
fn draw_resnet(param: &Param, cfg: &ResNetConfig) -> Draw {
    let name = param.name.strip_prefix("visual.").unwrap_or(&param.name);
    let std = (cfg.channels() as f64).powf(-0.5);
    if let Some(role) = name.strip_prefix("attnpool.") {
        // torch.nn.Linear's biases: one over the root of the inputs of an output.
        return if role.ends_with("bias") { Draw::Uniform(std) } else { Draw::Normal(std) };
    }
    let (module, role) = name.rsplit_once('.').expect("module and tensor");
    let is_norm = param.shape.len() == 1;
    match role {
        "weight" if !is_norm => {
            // torch.nn.Conv2d
            Draw::Uniform((param.shape[1..].iter().product::<usize>() as f64).powf(-0.5))
        }
        "weight" if module.starts_with("layer") && module.ends_with("bn3") => Draw::Constant(0.0),
        "weight" => Draw::Constant(1.0),
        "bias" => Draw::Constant(0.0),
        _ => unreachable!("{} has no initialisation", param.name),
    }
}

/// `TextTransformer.init_parameters`; biases of the MLP keep PyTorch's default.
fn draw_text(name: &str, config: &ClipConfig) -> Draw {
    let cfg = &config.text_cfg;
    let (width, hidden) = (cfg.width as f64, cfg.hidden() as f64);
    match role(name) {
        "token_embedding.weight" => Draw::Normal(0.02),
        "positional_embedding" => Draw::Normal(0.01),
        "attn.in_proj_weight" | "text_projection" => Draw::Normal(width.powf(-0.5)),
        "attn.out_proj.weight" | "mlp.c_proj.weight" => {
            Draw::Normal(width.powf(-0.5) * (2.0 * cfg.layers as f64).powf(-0.5))
        }
        "mlp.c_fc.weight" => Draw::Normal((2.0 * width).powf(-0.5)),
        "attn.in_proj_bias" | "attn.out_proj.bias" => Draw::Constant(0.0),
        "mlp.c_fc.bias" => Draw::Uniform(width.powf(-0.5)),
        "mlp.c_proj.bias" => Draw::Uniform(hidden.powf(-0.5)),
        _ => unreachable!("{name} has no initialisation"),
    }
}
