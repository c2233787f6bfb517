#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/Exception.h>
#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/HashStore.hpp>

#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <set>
#include <thread>
#include <utility>

#include "collective/backends.h"
#include "tessera/collective/groups.h"

namespace tessera::collective {
namespace {

using ports::CollectiveGroup;
using ports::Numbers;
using ports::NumberType;
using ports::PendingCollective;
using ports::PendingResult;
using WorkPointer = c10::intrusive_ptr<c10d::Work>;

template <class Function>
auto guarded(const char* what, Function&& function) -> decltype(function()) {
  try {
    return function();
  } catch (const c10::Error& exception) {
    return internal_error("{} between the workers of this box failed: {}", what, exception.what_without_backtrace());
  } catch (const std::exception& exception) {
    return internal_error("{} between the workers of this box failed: {}", what, exception.what());
  }
}

// Used by the thread of its worker.
class PendingWork final : public PendingCollective {
 public:
  PendingWork(const char* what, WorkPointer work) : what_(what), work_(std::move(work)) {}
  ~PendingWork() override {
    // A failure stays: whoever uses the group next meets it too.
    if (work_) (void)wait();
  }
  Status wait() override {
    return guarded(what_, [&]() -> Status {
      const WorkPointer work = std::exchange(work_, nullptr);
      if (work && !work->wait()) return internal_error("{} between the workers of this box failed", what_);
      return ok_status();
    });
  }

 private:
  const char* const what_;
  WorkPointer work_;
};

struct End {
  c10::intrusive_ptr<c10d::Backend> backend;
  WorkerPlace place;
};

// All ends of a group, which end together: an end that goes alone is an error to the others.
class Ends {
 public:
  explicit Ends(size_t size) : ends_(size) {}
  ~Ends() {
    std::vector<std::jthread> threads;
    for (End& end : ends_) {
      if (end.backend) threads.emplace_back([this, &end] { finish(&end); });
    }
  }
  End& operator[](size_t rank) { return ends_[rank]; }
  void abort(size_t rank) {
    aborted_ = true;
    try {
      ends_[rank].backend->abort();
    } catch (const std::exception&) {
      // It is given up either way.
    }
  }

 private:
  void finish(End* end) const {
    const c10::DeviceGuard on_device(end->place.device);
    try {
      if (!aborted_) end->backend->shutdown();
    } catch (const std::exception&) {
      // Nobody uses it any more.
    }
    end->backend.reset();
  }

  std::vector<End> ends_;
  std::atomic<bool> aborted_ = false;
};

class C10dGroup final : public CollectiveGroup {
 public:
  C10dGroup(std::shared_ptr<Ends> ends, size_t rank)
      : ends_(std::move(ends)), backend_((*ends_)[rank].backend.get()), place_((*ends_)[rank].place) {}

  uint32_t rank() const override { return static_cast<uint32_t>(place_.rank); }
  uint32_t size() const override { return static_cast<uint32_t>(place_.size); }

  PendingResult all_reduce(const Numbers& numbers) override {
    return begin("a sum", [&] {
      std::vector<at::Tensor> tensors{tensor(numbers)};
      return backend_->allreduce(tensors);
    });
  }
  PendingResult reduce_scatter(const Numbers& in, const Numbers& out) override {
    TESSERA_CHECK(in.count == out.count * size() && in.type == out.type);
    return begin("a scattered sum", [&] {
      at::Tensor to = tensor(out), from = tensor(in);
      return backend_->_reduce_scatter_base(to, from);
    });
  }
  PendingResult all_gather(const Numbers& in, const Numbers& out) override {
    TESSERA_CHECK(out.count == in.count * size() && in.type == out.type);
    return begin("gathering", [&] {
      at::Tensor to = tensor(out), from = tensor(in);
      return backend_->_allgather_base(to, from);
    });
  }
  PendingResult broadcast(const Numbers& numbers, uint32_t root) override {
    return begin("a broadcast", [&] {
      std::vector<at::Tensor> tensors{tensor(numbers)};
      c10d::BroadcastOptions options;
      options.rootRank = root;
      return backend_->broadcast(tensors, options);
    });
  }
  Status barrier() override {
    return guarded("a barrier", [&]() -> Status {
      const c10::DeviceGuard on_device(place_.device);
      std::vector<at::Tensor> one{at::ones({1}, at::TensorOptions().dtype(at::kFloat).device(place_.device))};
      backend_->allreduce(one)->wait();
      const float sum = one[0].item<float>();  // waits for the stream
      if (sum != static_cast<float>(size())) return internal_error("a barrier of {} workers counted {}", size(), sum);
      return ok_status();
    });
  }
  void abort() override { ends_->abort(rank()); }

 private:
  at::Tensor tensor(const Numbers& numbers) const {
    const at::ScalarType type = numbers.type == NumberType::kFloat    ? at::kFloat
                                : numbers.type == NumberType::kDouble ? at::kDouble
                                                                      : at::kBFloat16;
    return at::from_blob(numbers.data, {static_cast<int64_t>(numbers.count)},
                         at::TensorOptions().dtype(type).device(place_.device));
  }

  template <class Function>
  PendingResult begin(const char* what, Function&& function) {
    return guarded(what, [&]() -> PendingResult {
      const c10::DeviceGuard on_device(place_.device);
      return std::make_unique<PendingWork>(what, function());
    });
  }

  const std::shared_ptr<Ends> ends_;
  c10d::Backend* const backend_;  // the ends'
  const WorkerPlace place_;
};

StatusOr<std::vector<at::Device>> check_devices(const std::vector<std::string>& names) {
  if (names.empty()) return invalid_argument("a box has at least one device");
  std::vector<at::Device> devices;
  std::set<std::string> seen;
  for (const std::string& name : names) {
    devices.emplace_back(name);
    if (devices.back().type() != devices.front().type()) {
      return invalid_argument("{} and {} can't be one box: GPUs or CPUs, not both", names.front(), name);
    }
    if (!devices.back().is_cpu() && !seen.insert(name).second) return invalid_argument("{} is named twice", name);
  }
  return devices;
}

}  // namespace

void prepare_process() {
  constexpr int kKeep = 0;  // what is set already
  ::setenv("NCCL_NVLS_ENABLE", "0", kKeep);
  ::setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", kKeep);
  ::setenv("TORCH_NCCL_ENABLE_MONITORING", "0", kKeep);
  ::setenv("TORCH_NCCL_RETHROW_CUDA_ERRORS", "0", kKeep);
  ::setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0", kKeep);
  // Nobody reads its record of the last operations, which it keeps for each and frees never.
  ::setenv("TORCH_FR_BUFFER_SIZE", "0", kKeep);
  // c10d logs every group it makes as a warning or below.
  ::setenv("TORCH_CPP_LOG_LEVEL", "ERROR", kKeep);
  c10::initLogging();  // nothing else reads it in a program without Python
}

StatusOr<std::vector<std::unique_ptr<CollectiveGroup>>> make_groups(const std::vector<std::string>& names,
                                                                    std::chrono::milliseconds timeout) {
  return guarded("connecting", [&]() -> StatusOr<std::vector<std::unique_ptr<CollectiveGroup>>> {
    TESSERA_ASSIGN_OR_RETURN(const std::vector<at::Device> devices, check_devices(names));
    const auto store = c10::make_intrusive<c10d::HashStore>();
    store->setTimeout(timeout);
    const size_t size = devices.size();
    const auto ends = std::make_shared<Ends>(size);
    std::vector<Status> states(size, ok_status());
    {
      std::vector<std::jthread> threads;
      for (size_t i = 0; i < size; ++i) {
        threads.emplace_back([&, i] {
          states[i] = guarded("connecting", [&]() -> Status {
            const c10::DeviceGuard on_device(devices[i]);
            const WorkerPlace place{static_cast<int>(i), static_cast<int>(size), devices[i], timeout};
            (*ends)[i] = {devices[i].is_cpu() ? make_gloo_backend(store, place) : make_nccl_backend(store, place), place};
            return ok_status();
          });
        });
      }
    }
    for (const Status& status : states) TESSERA_RETURN_IF_ERROR(status);
    std::vector<std::unique_ptr<CollectiveGroup>> groups;
    for (size_t i = 0; i < size; ++i) groups.push_back(std::make_unique<C10dGroup>(ends, i));
    return groups;
  });
}

}  // namespace tessera::collective
