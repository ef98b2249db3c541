"""ATen's functions of tensors, by name: none touches files, processes or memory but its own."""

from __future__ import annotations

__all__ = ["ATEN"]

_NAMES = """
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_scalar _assert_tensor_metadata
_cdist_forward _conj _conv_depthwise2d _convolution _fft_c2c _fft_c2r _fft_r2c _linalg_det
_linalg_svd _local_scalar_dense _log_softmax _native_batch_norm_legit
_native_batch_norm_legit_no_training _prelu_kernel _reshape_alias _safe_softmax
_scaled_dot_product_flash_attention_for_cpu _shape_as_tensor _softmax _to_copy _trilinear
_unsafe_index _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
_weight_norm_interface abs absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add addbmm
addcdiv addcmul addmm addmv addr affine_grid_generator alias alias_copy all alpha_dropout amax
amin aminmax angle any arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin
argsort as_strided as_strided_copy asin asinh atan atan2 atanh atleast_1d atleast_2d atleast_3d
avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bilinear bincount bitwise_and
bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor block_diag bmm
broadcast_tensors broadcast_to bucketize cat cdist ceil celu chain_matmul channel_shuffle chunk
clamp clamp_max clamp_min clip clone col2im column_stack complex concat concatenate conj
conj_physical constant_pad_nd contiguous conv1d conv2d conv3d conv_depthwise3d conv_transpose1d
conv_transpose2d conv_transpose3d convolution copy copysign cos cosh cosine_similarity
count_nonzero cross cummax cummin cumprod cumsum deg2rad detach detach_copy diag diag_embed
diagonal diagonal_copy diagonal_scatter diff digamma dim dist div divide dot dropout dsplit
dstack einsum elu embedding embedding_bag empty empty_like empty_permuted eq equal erf erfc
erfinv exp exp2 expand expand_as expand_copy expm1 exponential eye feature_alpha_dropout
feature_dropout fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_ifft fft_ifft2
fft_ifftn fft_ifftshift fft_ihfft fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2
fft_rfftfreq fft_rfftn fill fix flatten flip fliplr flipud float_power floor floor_divide fmax
fmin fmod frac frobenius_norm full full_like gather gcd ge gelu glu greater greater_equal
grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru gt hamming_window hann_window
hardshrink hardsigmoid hardswish hardtanh heaviside hsplit hstack hypot i0 im2col imag index
index_add index_copy index_fill index_put index_reduce index_select inner instance_norm inverse
isclose isfinite isin isinf isnan isneginf isposinf isreal istft item kron kthvalue layer_norm
lcm ldexp le leaky_relu lerp less less_equal lgamma lift_fresh lift_fresh_copy linalg_cholesky
linalg_cross linalg_det linalg_eigh linalg_inv linalg_matrix_norm linalg_matrix_power
linalg_norm linalg_pinv linalg_qr linalg_solve linalg_svd linalg_vecdot linalg_vector_norm
linear linspace log log10 log1p log2 log_sigmoid log_softmax logaddexp logaddexp2 logcumsumexp
logical_and logical_not logical_or logical_xor logit logspace logsumexp lstm lt masked_fill
masked_scatter masked_select matmul matrix_exp matrix_power max max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices
maximum mean median meshgrid min minimum mish mm mode moveaxis movedim mul multinomial multiply
mv nan_to_num nanmean nanmedian nansum narrow narrow_copy native_batch_norm native_dropout
native_group_norm native_layer_norm ne neg negative new_empty new_empty_strided new_full
new_ones new_zeros nextafter nonzero norm normal not_equal numel numpy_T one_hot ones ones_like
outer pad pairwise_distance pdist permute permute_copy pixel_shuffle pixel_unshuffle polar
positive pow prelu prod quantile rad2deg rand rand_like randint randint_like randn randn_like
randperm ravel real reciprocal reflection_pad1d reflection_pad2d reflection_pad3d relu relu6
remainder renorm repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
reshape reshape_as resolve_conj resolve_neg rms_norm rnn_relu rnn_tanh roll rot90 round rrelu
rrelu_with_noise rsqrt rsub scalar_tensor scaled_dot_product_attention scatter scatter_add
scatter_reduce searchsorted select select_copy select_scatter selu sgn sigmoid sign signbit silu
sin sinc sinh size slice slice_copy slice_scatter softmax softplus softshrink sort special_entr
special_erf special_erfc special_erfinv special_exp2 special_expit special_expm1 special_log1p
special_log_softmax special_logit special_logsumexp special_round special_sinc special_softmax
special_xlog1py special_xlogy split split_copy split_with_sizes split_with_sizes_copy sqrt
square squeeze squeeze_copy stack std std_mean stft stride sub subtract sum sum_to_size swapaxes
swapdims sym_constrain_range sym_constrain_range_for_size sym_numel sym_size sym_storage_offset
sym_stride t t_copy take take_along_dim tan tanh tensor_split tensordot threshold tile to topk
trace transpose transpose_copy trapezoid tril tril_indices triu triu_indices true_divide trunc
type_as unbind unbind_copy unflatten unfold unfold_copy unique_consecutive unsafe_chunk
unsafe_split unsafe_split_with_sizes unsqueeze unsqueeze_copy upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
upsample_trilinear3d vander var var_mean vdot view view_as view_as_complex view_as_real
view_copy vsplit vstack where xlogy zero zeros zeros_like
"""
ATEN = frozenset(_NAMES.split())
