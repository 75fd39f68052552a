//! Launch of `kernels/pool.cu`; an insertion is one copy, or two where the ring wraps.

use super::api::{self, PoolMatch};
use super::machine::Machine;
use super::{Gpu, int};
use crate::backend::ops::pool::Pool;
use crate::backend::{Device, View, ViewMut};
use crate::error::Result;
use half::bf16;

impl<M: Machine> Pool for Gpu<M> {
    fn pool_match(
        &self,
        width: usize,
        queries: View<'_, Self, bf16>,
        rows: View<'_, Self, bf16>,
        index: ViewMut<'_, Self, u32>,
        score: ViewMut<'_, Self, f32>,
    ) -> Result<()> {
        let candidates = api::ROCLIP_STRIPS as usize * index.len;
        let scores = self.scratch(candidates * (size_of::<f32>() + size_of::<u32>()))?;
        let args = PoolMatch {
            queries: queries.ptr(),
            pool: rows.ptr(),
            index: index.ptr(),
            score: score.ptr(),
            best_score: scores as *mut f32,
            best_index: (scores + (candidates * size_of::<f32>()) as u64) as *mut u32,
            queries_n: index.len as i64,
            pool_n: (rows.len / width) as i64,
            width: int(width),
            kernel: self.kernel(),
        };
        self.launch("pool::matching", |k| k.pool_match, args)
    }

    fn pool_insert(
        &self,
        width: usize,
        rows: View<'_, Self, bf16>,
        pool: ViewMut<'_, Self, bf16>,
        at: usize,
    ) -> Result<()> {
        let at = at * width;
        let before_end = rows.len.min(pool.len - at);
        let (start, end) = (pool.offset, pool.offset + pool.len);
        let first = View { len: before_end, ..rows };
        self.copy(first, ViewMut::of(pool.buf, start + at..start + at + before_end))?;
        let (offset, len) = (rows.offset + before_end, rows.len - before_end);
        if len > 0 {
            debug_assert!(start + len <= end, "the contract lets in no more than the ring holds");
            self.copy(View { offset, len, ..rows }, ViewMut::of(pool.buf, start..start + len))?;
        }
        Ok(())
    }
}
