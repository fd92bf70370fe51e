// A CUDA device that computes nothing, for a CPU build of PyTorch: autograd finds its threads,
// autocast its rules and scaled_dot_product_attention its kernels, while FakeTensorMode keeps
// every tensor without data.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/native/transformers/sdp_utils_cpp.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {

const c10::Device kDevice(c10::DeviceType::CUDA, 0);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag)
      const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, kDevice); }
};

// What sdp_utils.cpp of CUDA asks for on Ampere and later; cuDNN takes what flash takes.
int64_t choose_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double, bool,
                         std::optional<double>, bool) {
  const auto& context = at::globalContext();
  const auto dtype = query.scalar_type();
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  const bool equal = dtype == key.scalar_type() && dtype == value.scalar_type();
  const bool dense = query.dim() == 4 && query.stride(-1) == 1 && key.stride(-1) == 1 &&
      value.stride(-1) == 1;
  const auto width = query.size(-1);
  if (context.userEnabledFlashSDP() && half && equal && dense && !mask && width <= 256 &&
      width == value.size(-1))
    return static_cast<int64_t>(sdp::SDPBackend::flash_attention);
  if (context.userEnabledMemEfficientSDP() && (half || dtype == at::kFloat) && equal && dense &&
      width % (half ? 8 : 4) == 0 && value.size(-1) % (half ? 8 : 4) == 0)
    return static_cast<int64_t>(sdp::SDPBackend::efficient_attention);
  return static_cast<int64_t>(sdp::SDPBackend::math);
}

const bool chosen = [] {
  at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention);
  return true;
}();

// CUDA has kernels for these. PyTorch splits them on a device without.
at::Tensor silu_backward(const at::Tensor& gradient, const at::Tensor&) {
  return at::empty_like(gradient);
}

using Pair = std::tuple<at::Tensor, at::Tensor>;
using Weight = std::optional<at::Tensor>;

Pair rms_norm(const at::Tensor& x, at::IntArrayRef shape, const Weight&, std::optional<double>) {
  auto statistics = x.sizes().vec();
  std::fill(statistics.end() - shape.size(), statistics.end(), 1);
  return {at::empty_like(x), at::empty(statistics, x.options().dtype(at::kFloat))};
}

Pair rms_norm_backward(const at::Tensor&, const at::Tensor& x, at::IntArrayRef, const at::Tensor&,
                       const Weight& weight, std::array<bool, 2> needed) {
  return {needed[0] ? at::empty_like(x) : at::Tensor(),
          needed[1] ? at::empty_like(*weight) : at::Tensor()};
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("silu_backward", &silu_backward);
  library.impl("_fused_rms_norm", &rms_norm);
  library.impl("_fused_rms_norm_backward", &rms_norm_backward);
}

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}

namespace at {
struct CUDAHooks : CUDAHooksInterface {  // the registry knows classes of this namespace only
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
  Generator getNewGenerator(DeviceIndex) const override { return detail::createCPUGenerator(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    return detail::getDefaultCPUGenerator();
  }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
