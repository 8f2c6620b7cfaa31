// A pretended CUDA card. Its memory is the host's and its kernels are the CPU's, but to PyTorch its tensors lie on `cuda:0`: autocast to float16 casts, the CPU's
// generators are refused, `.numpy()` is refused, and a tensor of the host and one of the card do not mix. Loaded before torch is imported; see card.py.
#include <set>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

using at::Tensor;
using c10::IValue;

static const c10::Device CARD(c10::kCUDA, 0), HOST(c10::kCPU);

// What PyTorch asks of every kind of device: the current one, and streams. Here all work is done at once.
struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, CARD); }
  c10::Device exchangeDevice(c10::Device) const override { return CARD; }
  c10::Device getDevice() const override { return CARD; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// A generator of the card draws what one of the CPU with the same seed would draw: a run on this card can be held against one without it.
struct CardGenerator final : c10::GeneratorImpl {
  at::Generator inner;
  explicit CardGenerator(at::Generator g) : GeneratorImpl(CARD, c10::DispatchKeySet(c10::DispatchKey::CUDA)), inner(std::move(g)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { inner.set_offset(offset); }
  uint64_t get_offset() const override { return inner.get_offset(); }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return inner.unsafeGetGeneratorImpl()->get_state(); }
  CardGenerator* clone_impl() const override { return new CardGenerator(inner.clone()); }
};

namespace at {  // where the registry looks for this name
struct CUDAHooks final : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  int getNumGPUs() const override { return 1; }
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::kCPU); }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<CardGenerator>(at::detail::createCPUGenerator()); }
  const Generator& getDefaultGenerator(DeviceIndex) const override { static const Generator one = getNewGenerator(0); return one; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

// The same memory, said to lie on another device.
static c10::Storage elsewhere(const c10::Storage& s, c10::Device device) {
  auto forget = [](void* p) { delete static_cast<c10::Storage*>(p); };
  return c10::Storage(c10::Storage::use_byte_size_t(), s.nbytes(), c10::DataPtr(s.mutable_data(), new c10::Storage(s), forget, device), c10::GetAllocator(c10::kCPU), true);
}
static Tensor shaped(Tensor t, const Tensor& like) {
  t.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return t;
}
static Tensor on(const Tensor& t, c10::Device device) {
  auto key = c10::DispatchKeySet(device.is_cuda() ? c10::DispatchKey::CUDA : c10::DispatchKey::CPU);
  return shaped(at::detail::make_tensor<c10::TensorImpl>(elsewhere(t.storage(), device), key, t.dtype()), t);
}
static Tensor view_of(const Tensor& base, const Tensor& t) {  // in inference mode too, a view of an ordinary tensor is an ordinary tensor
  return shaped(at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(base.storage()), base.key_set(), t.dtype()), t);
}

template <class F> static IValue each_tensor(const IValue& v, F f) {
  if (v.isTensor()) return f(v.toTensor());
  if (v.isTensorList()) {
    c10::List<Tensor> all;
    for (const Tensor& t : v.toTensorVector()) all.push_back(f(t));
    return all;
  }
  if (v.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> all;
    for (const auto& t : v.toOptionalTensorVector()) all.push_back(t ? std::optional<Tensor>(f(*t)) : t);
    return all;
  }
  return v;
}

using Op = c10::OperatorHandle;
using Values = std::vector<IValue>;
using Pairs = std::vector<std::pair<Tensor, Tensor>>;  // of the card, and as the host sees it

// Does the call concern the card? An error where a card would refuse it.
static bool concerns_card(const Op& op, const std::string& name, const Values& args) {
  static const std::set<std::string> copies = {"aten::copy_", "aten::_copy_from", "aten::set_"};
  bool indexes = name.rfind("aten::index.", 0) == 0 || name == "aten::index" || name.rfind("aten::index_put", 0) == 0 || name == "aten::_index_put_impl_";
  bool joins = name == "aten::cat" || name == "aten::stack", card = false, host = false;
  for (const auto& v : args) {
    if (v.isDevice()) card |= v.toDevice().is_cuda();
    each_tensor(v, [&](const Tensor& t) {
      if (t.defined()) (t.is_cuda() ? card : host) |= t.is_cuda() || t.dim() > 0 || joins;  // numbers of the host go anywhere, but are not joined
      return t;
    });
  }
  if (indexes) {  // what is indexed must be on the card; the indices need not
    host = !args[0].toTensor().is_cuda() || (args.size() > 2 && args[2].isTensor() && !args[2].toTensor().is_cuda() && args[2].toTensor().dim() > 0);
  }
  TORCH_CHECK(!card || !host || copies.count(name), "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (", name, ")");
  return card;
}

static Values to_host(const Values& args, bool card, bool widen, Pairs& seen) {
  Values out;
  for (const auto& v : args) {
    if (v.isDevice() && v.toDevice().is_cuda()) out.emplace_back(HOST);
    else if (v.isGenerator()) {
      auto g = v.toGenerator();
      TORCH_CHECK(g.device().is_cuda() == card, "Expected a '", card ? "cuda" : "cpu", "' device type for generator but found '", g.device(), "'");
      out.emplace_back(card ? IValue(static_cast<CardGenerator*>(g.unsafeGetGeneratorImpl())->inner) : v);
    } else out.push_back(each_tensor(v, [&](const Tensor& t) {
      if (!t.defined() || !t.is_cuda()) return t;
      for (auto& [c, h] : seen) if (c.is_same(t)) return h;
      Tensor h = on(t, HOST);
      seen.emplace_back(t, widen && t.scalar_type() == at::kHalf ? h.to(at::kFloat) : h);
      return seen.back().second;
    }));
  }
  return out;
}

// What an operator changed in place, or gave another size.
static void take_over(const Pairs& seen) {
  for (auto& [c, h] : seen) {
    if (c.scalar_type() != h.scalar_type()) { on(c, HOST).copy_(h); continue; }
    if (h.storage().data() != c.storage().data()) c.unsafeGetTensorImpl()->set_storage_keep_dtype(elsewhere(h.storage(), CARD));
    if (h.sizes() != c.sizes() || h.strides() != c.strides()) shaped(c, h);
  }
}

static void run(const Op& op, const std::string& name, const Values& args, bool card, bool widen, torch::jit::Stack* stack) {
  Pairs seen;
  torch::jit::Stack s = to_host(args, card, widen, seen);
  op.callBoxed(s);
  take_over(seen);
  const auto& returns = op.schema().returns();
  for (size_t r = 0; card && r < returns.size(); ++r) {
    auto& v = s[s.size() - returns.size() + r];
    const auto* shares = returns[r].alias_info();
    v = each_tensor(v, [&](const Tensor& t) {
      if (!t.defined()) return t;
      for (auto& [c, h] : seen) if (h.is_same(t)) return c;  // changed in place
      if (shares && !shares->isWrite()) for (auto& [c, h] : seen) if (h.storage().data() == t.storage().data()) return view_of(c, t);
      return on(widen && t.scalar_type() == at::kFloat ? t.to(at::kHalf) : t, CARD);
    });
  }
  if (name == "aten::copy_") s.back() = args[0];  // may be of the host
  stack->erase(stack->end() - args.size(), stack->end());
  stack->insert(stack->end(), s.begin(), s.end());
}

// A softmax from float16 to float32 and its gradient are one kernel on a card, and two on the CPU.
static void widen_softmax(const std::string& name, IValue* args) {
  if ((name == "aten::_softmax" || name == "aten::_log_softmax") && args[2].toBool()) {
    args[0] = args[0].toTensor().to(at::kFloat);
    args[2] = false;
  }
  if ((name == "aten::_softmax_backward_data" || name == "aten::_log_softmax_backward_data") && args[0].toTensor().scalar_type() == at::kFloat) args[3] = at::kFloat;
}

static void fallback(const Op& op, torch::jit::Stack* stack) {
  const size_t n = op.schema().arguments().size();
  const std::string name = op.schema().operator_name().name;
  widen_softmax(name, stack->data() + stack->size() - n);
  const Values args(stack->end() - n, stack->end());
  const bool card = concerns_card(op, name, args);
  try { run(op, name, args, card, false, stack); }
  catch (const c10::Error& e) {  // an operator that the CPU has not for float16
    if (std::string(e.what()).find("Half") == std::string::npos) throw;
    run(op, name, args, card, true, stack);
  }
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }
TORCH_LIBRARY_IMPL(aten, CUDA, m) {  // these look at the device themselves and would go for kernels that only a card has
  for (const char* name : {"copy_", "convolution", "convolution_backward"}) m.impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("_fused_sdp_choice", [](const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool, std::optional<double>, bool) -> int64_t { return 0; });
}
