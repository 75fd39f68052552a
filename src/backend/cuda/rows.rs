//! Launches of `kernels/rows.cu`.

use super::api::{RowsDot, RowsGather, RowsScatter};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::rows::Rows;
use crate::backend::{View, ViewMut};
use crate::error::Result;
use half::bf16;

impl<M: Machine> Rows for Gpu<M> {
    fn rows_gather(
        &self,
        width: usize,
        x: View<'_, Self, bf16>,
        index: View<'_, Self, u32>,
        out: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        let args = RowsGather {
            x: x.ptr(),
            index: index.ptr(),
            out: out.ptr(),
            rows: index.len as i64,
            width: int(width),
        };
        self.launch("rows::gather", |k| k.rows_gather, args)
    }

    fn rows_scatter(
        &self,
        width: usize,
        dout: View<'_, Self, bf16>,
        index: View<'_, Self, u32>,
        dx: ViewMut<'_, Self, bf16>,
    ) -> Result<()> {
        self.machine.zero(dx.at(), dx.len * size_of::<bf16>())?;
        let args = RowsScatter {
            dout: dout.ptr(),
            index: index.ptr(),
            dx: dx.ptr(),
            rows: index.len as i64,
            width: int(width),
        };
        self.launch("rows::scatter", |k| k.rows_scatter, args)
    }

    fn rows_dot(
        &self,
        width: usize,
        a: View<'_, Self, bf16>,
        b: View<'_, Self, bf16>,
        out: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let args = RowsDot {
            a: a.ptr(),
            b: b.ptr(),
            out: out.ptr(),
            rows: out.len as i64,
            width: int(width),
        };
        self.launch("rows::dot", |k| k.rows_dot, args)
    }
}
