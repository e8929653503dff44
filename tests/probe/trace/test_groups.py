"""Groups of kernels, by names as they were seen in public traces of torch on Ampere and Hopper."""

from __future__ import annotations

import pytest

from qvl_lab.probe.trace import GROUPS, group
from qvl_lab.probe.trace.groups import PATTERNS

ATEN = "void at::native::"
SEEN = {
    "attention": [
        "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, "
        "false, cutlass::bfloat16_t> >(pytorch_flash::Flash_fwd_params)",
        "void pytorch_flash::flash_fwd_splitkv_combine_kernel<Flash_fwd_kernel_traits<128> >()",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<>)",
        "cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1",
        "void cutlass::device_kernel<flash::enable_sm90_or_later<flash::FlashAttnFwdSm90<> > >",
        "triton_tem_fused_flex_attention_0",
    ],
    "matrix multiply": [
        "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNN",
        "nvjet_sm90_tst_mma_64x64x128_h_bz_TNT",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_32x6_tn",
        "void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_128x64_64x3>",
        "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, int, __nv_bfloat16>",
        "void gemv2T_kernel_val<int, int, __half, __half, __half, float, 128, 16, 4, 4, false>",
        "void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16, float>",
        "void implicit_convolve_sgemm<float, float, 128, 5, 5, 3, 3, 3, 1, false>",
        "triton_tem_fused_addmm_2",
    ],
    "norm": [
        ATEN + "(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float, true>",
        ATEN + "(anonymous namespace)::RowwiseMomentsCUDAKernel<float>",
        "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>",
        "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_4",
        "triton_per_fused_native_layer_norm_1",
    ],
    "copy": [
        "Memcpy HtoD (Pageable -> Device)",
        "Memset (Device)",
        ATEN + "(anonymous namespace)::CatArrayBatchedCopy_vectorized<OpaqueType<2u> >",
        ATEN + "unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(at::Tensor>",
        ATEN + "vectorized_elementwise_kernel<4, at::native::bfloat16_copy_kernel_cuda()>",
        ATEN + "vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >",
        ATEN + "vectorized_gather_kernel<16, long>",
        ATEN + "_scatter_gather_elementwise_kernel<128, 8>",
        ATEN + "index_elementwise_kernel<128, 4, at::native::gpu_index_kernel<> >",
        ATEN + "(anonymous namespace)::indexSelectLargeIndex<c10::BFloat16, long>",
    ],
    "elementwise": [
        ATEN + "vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >",
        ATEN + "elementwise_kernel<128, 4, at::native::gpu_kernel_impl<neg_kernel_cuda> >",
        ATEN + "vectorized_elementwise_kernel<8, at::native::GeluCUDAKernelImpl()>",
        # named after what was fused around it, and yet pointwise
        "triton_poi_fused__scaled_dot_product_flash_attention_add_mul_permute_stack_sub",
        "triton_poi_fused_addmm_silu_1",
        "triton_poi_fused_add_mul_native_layer_norm_unsqueeze_3",
    ],
    "other": [
        ATEN + "reduce_kernel<512, 1, at::native::ReduceOp<float, at::native::MeanOps<float> > >",
        "void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, false>",
        "void at_cuda_detail::cub::DeviceScanInitKernel<ScanTileState<int> >",
        "triton_red_fused__softmax_scaled_dot_product_attention_2",
    ],
}


@pytest.mark.parametrize(
    ("kernel", "expected"), [(name, kind) for kind, names in SEEN.items() for name in names]
)
def test_kernels_are_told_by_their_names(kernel, expected):
    assert group(kernel) == expected


def test_every_group_is_named_and_seen():
    assert {name for name, _ in PATTERNS} < set(GROUPS)
    assert set(SEEN) == set(GROUPS) - {"gap"}
