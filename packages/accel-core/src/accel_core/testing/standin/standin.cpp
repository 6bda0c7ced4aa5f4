// A device of memory that is the machine's own: two of them, each with a limit in bytes and with counters.
//
// Operators run on the CPU through torch's fallback. What is its own is what tests of memory need: every
// allocation is counted on its device, and one beyond the limit raises torch.OutOfMemoryError. Copies from
// pinned memory that need not be waited for are queued on their stream and happen later (streams.hpp);
// everything else waits for its stream and happens at once.
// https://docs.pytorch.org/docs/stable/accelerator/index.html describes the PrivateUse1 interfaces.
// Not torch/extension.h: it has all of torch, and takes three times as long to compile.
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstring>

#include "streams.hpp"

namespace py = pybind11;

namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;
using standin::kDevices;
constexpr size_t kLimit = size_t(64) << 20;
thread_local c10::DeviceIndex current = 0;

struct Memory {
  std::atomic<size_t> used{0};
  std::atomic<size_t> peak{0};
  std::atomic<size_t> limit{kLimit};
};
std::array<Memory, kDevices> memories;

struct Block {
  void* data;
  size_t bytes;
  c10::DeviceIndex device;
  int64_t stream;
};

void give_back(void* context) {
  auto* block = static_cast<Block*>(context);
  memories[block->device].used -= block->bytes;
  // On the stream that it was taken on: allocators that cache hand it out there again, at once.
  standin::log_book().add("free", block->device, block->stream, uint64_t(block->data), block->bytes);
  standin::graveyard().bury(block->data);
  delete block;
}

struct Allocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    auto& memory = memories[current];
    const size_t held = memory.used.fetch_add(bytes) + bytes;
    if (held > memory.limit) {
      memory.used -= bytes;
      TORCH_CHECK_WITH(OutOfMemoryError, false, "standin:", int(current), " out of memory. Tried to allocate ",
                       bytes, " bytes, ", held - bytes, " of ", memory.limit.load(), " are in use");
    }
    size_t peak = memory.peak;
    while (peak < held && !memory.peak.compare_exchange_weak(peak, held)) {
    }
    const auto stream = standin::current_stream[current];
    auto* block = new Block{std::malloc(bytes ? bytes : 1), bytes, current, stream};
    // Not a number, in every floating-point format: what is read too early shows.
    std::memset(block->data, 0xff, bytes);
    standin::log_book().add("alloc", current, stream, uint64_t(block->data), bytes);
    return {block->data, block, &give_back, c10::Device(kType, current)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Allocator allocator;
REGISTER_ALLOCATOR(kType, &allocator);

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    TORCH_CHECK(standin::pinned().possible, "standin: no memory can be pinned here");
    void* data = standin::pinned().take(bytes);
    return {data, data, [](void* context) { standin::pinned().give_back(context); }, c10::Device(c10::kCPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};
PinnedAllocator pinned_allocator;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto before = getDevice();
    current = device.index();
    return before;
  }
  c10::Device getDevice() const override { return {kType, current}; }
  void setDevice(c10::Device device) const override {
    TORCH_CHECK(device.index() < kDevices, "there is no standin:", int(device.index()));
    current = device.index();
  }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current = device.index(); }
  c10::Stream stream(c10::Device device, int64_t id) const {
    const auto index = device.has_index() ? device.index() : current;
    return c10::Stream(c10::Stream::UNSAFE, c10::Device(kType, index), id);
  }
  c10::Stream getStream(c10::Device device) const override {
    const auto index = device.has_index() ? device.index() : current;
    return stream(device, standin::current_stream.at(index));
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return stream(device, 0); }
  c10::Stream getNewStream(c10::Device device, int) const override {
    const auto index = device.has_index() ? device.index() : current;
    return stream(device, standin::new_queue(index));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getNewStream(device, 0); }
  c10::Stream exchangeStream(c10::Stream fresh) const override {
    const auto before = getStream(fresh.device());
    standin::current_stream.at(fresh.device_index()) = fresh.id();
    return before;
  }
  bool queryStream(const c10::Stream& each) const override {
    return standin::queue(each.device_index(), each.id()).idle();
  }
  void synchronizeStream(const c10::Stream& each) const override {
    standin::queue(each.device_index(), each.id()).drain();
    standin::log_book().add("sync", each.device_index(), each.id(), 0, 0);
  }
  void synchronizeDevice(const c10::DeviceIndex device) const override { standin::synchronize(device); }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  void record(void** event, const c10::Stream& each, const c10::DeviceIndex, const c10::EventFlag) const override {
    standin::record(event, each);
  }
  void block(void* event, const c10::Stream& each) const override { standin::block(event, each); }
  bool queryEvent(void* event) const override {
    if (!event) return true;
    auto& found = *static_cast<standin::EventPtr*>(event);
    return found->is_reached(found->last());
  }
  void synchronizeEvent(void* event) const override { standin::wait_for(event); }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<standin::EventPtr*>(event);
  }
  double elapsedTime(void* first, void* second, const c10::DeviceIndex) const override {
    const auto& [from, to] = std::pair(*static_cast<standin::EventPtr*>(first), *static_cast<standin::EventPtr*>(second));
    return std::chrono::duration<double, std::milli>(to->when - from->when).count();
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct OnDevice {
  explicit OnDevice(std::optional<c10::Device> device) : before(current) {
    if (device && device->has_index()) current = device->index();
  }
  ~OnDevice() { current = before; }
  c10::DeviceIndex before;
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex device) const override { current = device; }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override { return standin::pinned().has(data); }
  c10::Device getDeviceFromPtr(void*) const override { return {kType, current}; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    OnDevice there(storage.device());
    auto fresh = allocator.allocate(bytes);
    std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

// The same memory, seen as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  const auto options = at::TensorOptions().dtype(tensor.dtype());
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  OnDevice there(device);
  return at::detail::empty_generic(size, &allocator, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  OnDevice there(device);
  return at::detail::empty_strided_generic(size, stride, &allocator,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

void note(const char* what, const at::Tensor& tensor) {
  if (tensor.device().type() != kType) return;
  const auto device = tensor.device().index();
  standin::log_book().add(what, device, standin::current_stream[device], uint64_t(tensor.data_ptr()), tensor.nbytes());
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool non_blocking) {
  const bool into = to.device().type() == kType;
  const auto device = (into ? to : from).device().index();
  const bool plain = from.is_contiguous() && to.is_contiguous() && from.dtype() == to.dtype() && from.sizes() == to.sizes();
  note("read", from);
  note("write", to);
  if (non_blocking && plain && into && from.is_cpu() && standin::pinned().has(from.data_ptr())) {
    // As a real device, by addresses: who lets go of the memory before it is done has a bug.
    standin::here(device).push([source = from.data_ptr(), target = to.data_ptr(), bytes = to.nbytes()] {
      std::this_thread::sleep_for(std::chrono::microseconds(standin::delay_us));
      std::memcpy(target, source, bytes);
    });
    return to;
  }
  standin::catch_up(device);
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar(const at::Tensor& tensor) {
  note("read", tensor);
  standin::catch_up(tensor.device().index());
  return on_cpu(tensor).item();
}

// For allocators that cache: nothing of this memory is handed out before the stream is done with it.
void record_stream(at::Tensor& tensor, c10::Stream stream) {
  standin::log_book().add("keep", stream.device_index(), stream.id(), uint64_t(tensor.storage().data()), tensor.storage().nbytes());
}

const at::Tensor& resize(const at::Tensor& tensor, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  size_t bytes = tensor.dtype().itemsize();
  for (const auto each : sizes) bytes *= each;
  if (tensor.storage().nbytes() < bytes) Hooks().resizePrivateUse1Bytes(tensor.storage(), bytes);
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(sizes);
  return tensor;
}

at::Tensor& set_storage(at::Tensor& tensor, at::Storage storage, c10::SymInt offset, c10::SymIntArrayRef size,
                        c10::SymIntArrayRef stride) {
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(storage));
  impl->set_storage_offset(offset.expect_int());
  const auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  const auto strides = C10_AS_INTARRAYREF_SLOW(stride);
  if (strides.empty())
    impl->set_sizes_contiguous(sizes);
  else
    impl->set_sizes_and_strides(sizes, strides);
  return tensor;
}

// Real devices refuse operands that lie on different ones; the CPU underneath would not notice.
void same_device(const c10::OperatorHandle& op, const at::Tensor& tensor, std::optional<c10::Device>& first) {
  if (!tensor.defined() || tensor.dim() == 0 || tensor.device().type() != kType) return;
  if (!first) first = tensor.device();
  TORCH_CHECK(*first == tensor.device(), "Expected all tensors to be on the same device, but ",
              op.schema().operator_name(), " was given ", *first, " and ", tensor.device());
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  std::optional<c10::Device> first;
  for (const auto& value : torch::jit::last(*stack, op.schema().arguments().size())) {
    if (value.isTensor()) same_device(op, value.toTensor(), first);
    if (value.isTensorList())
      for (const at::Tensor& each : value.toTensorVector()) same_device(op, each, first);
  }
  OnDevice there(first);
  standin::catch_up(current);
  at::native::cpu_fallback(op, stack);
}

at::Tensor autocast_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  c10::impl::ExcludeDispatchKeyGuard plain(c10::DispatchKey::AutocastPrivateUse1);
  const auto dtype = at::autocast::get_autocast_dtype(kType);
  const auto cast = [&](const at::Tensor& each) { return at::autocast::cached_cast(dtype, each, kType); };
  return at::linear(cast(x), cast(weight), bias ? std::optional<at::Tensor>(cast(*bias)) : std::nullopt);
}

at::Tensor autocast_matmul(const at::Tensor& left, const at::Tensor& right) {
  c10::impl::ExcludeDispatchKeyGuard plain(c10::DispatchKey::AutocastPrivateUse1);
  const auto dtype = at::autocast::get_autocast_dtype(kType);
  return at::matmul(at::autocast::cached_cast(dtype, left, kType), at::autocast::cached_cast(dtype, right, kType));
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", TORCH_FN(empty));
  m.impl("empty_strided", TORCH_FN(empty_strided));
  m.impl("_copy_from", TORCH_FN(copy_from));
  m.impl("_copy_from_and_resize", TORCH_FN(copy_from_and_resize));
  m.impl("_local_scalar_dense", TORCH_FN(local_scalar));
  m.impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  m.impl("record_stream", TORCH_FN(record_stream));
  m.impl("view", TORCH_FN(at::native::view));
  m.impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  m.impl("resize_", TORCH_FN(resize));
  m.impl("set_.source_Storage_storage_offset", TORCH_FN(set_storage));
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, m) { m.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  m.impl("linear", TORCH_FN(autocast_linear));
  m.impl("matmul", TORCH_FN(autocast_matmul));
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  static Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  m.def("count", [] { return kDevices; });
  m.def("current", [] { return int(current); });
  m.def("select", [](int device) { Guard().setDevice({kType, c10::DeviceIndex(device)}); });
  m.def("used", [](int device) { return memories.at(device).used.load(); });
  m.def("peak", [](int device) { return memories.at(device).peak.load(); });
  m.def("limit", [](int device) { return memories.at(device).limit.load(); });
  m.def("set_limit", [](int device, size_t bytes) { memories.at(device).limit = bytes; });
  m.def("reset_peak", [](int device) { memories.at(device).peak = memories.at(device).used.load(); });
  const auto without_gil = py::call_guard<py::gil_scoped_release>();
  m.def("synchronize", [](int device) { standin::synchronize(device); }, without_gil);
  m.def("set_delay", [](int microseconds) { standin::delay_us = microseconds; });
  m.def("set_pinning", [](bool possible) { standin::pinned().possible = possible; });
  m.def("pinned", [] { return standin::pinned().bytes; });
  m.def("pinned_peak", [] { return standin::pinned().peak; });
  m.def("trace", [](bool on) { standin::log_book().on = on; });
  m.def("reset", [] {
    standin::reset();
    current = 0;
    for (auto& memory : memories) {
      memory.limit = kLimit;
      memory.peak = memory.used.load();
    }
  }, without_gil);
  m.def("traced", [] { return standin::log_book().take(); });
}
