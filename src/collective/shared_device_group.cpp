#include <ATen/ops/from_blob.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <barrier>
#include <exception>
#include <utility>

#include "tessera/collective/groups.h"

namespace tessera::collective {
namespace {

using ports::CollectiveGroup;
using ports::Numbers;
using ports::NumberType;
using ports::PendingResult;

at::Tensor tensor_of(const Numbers& numbers, const at::Device& device) {
  const at::ScalarType type = numbers.type == NumberType::kFloat    ? at::kFloat
                              : numbers.type == NumberType::kDouble ? at::kDouble
                                                                    : at::kBFloat16;
  return at::from_blob(numbers.data, {static_cast<int64_t>(numbers.count)},
                       at::TensorOptions().dtype(type).device(device));
}

// Every operation is done when it returns.
class Done final : public ports::PendingCollective {
 public:
  Status wait() override { return ok_status(); }
};

// What the workers hand each other; each writes its own place before they meet.
struct Table {
  Table(size_t workers, const at::Device& on) : device(on), in(workers), out(workers), meeting(static_cast<std::ptrdiff_t>(workers)) {}
  const at::Device device;
  std::vector<at::Tensor> in, out;
  std::barrier<> meeting;
};

class SharedDeviceGroup final : public CollectiveGroup {
 public:
  SharedDeviceGroup(std::shared_ptr<Table> table, size_t rank) : table_(std::move(table)), rank_(rank) {}
  uint32_t rank() const override { return static_cast<uint32_t>(rank_); }
  uint32_t size() const override { return static_cast<uint32_t>(table_->in.size()); }

  PendingResult all_reduce(const Numbers& numbers) override {
    return together(numbers, numbers, [this] {
      const at::Tensor sum = table_->in[0].clone();
      for (size_t i = 1; i < table_->in.size(); ++i) sum.add_(table_->in[i]);
      for (const at::Tensor& out : table_->out) out.copy_(sum);
    });
  }
  PendingResult reduce_scatter(const Numbers& in, const Numbers& out) override {
    return together(in, out, [this] {
      const int64_t count = table_->out[0].numel();
      std::vector<at::Tensor> sums;  // `out` may lie in `in`
      for (size_t part = 0; part < table_->out.size(); ++part) {
        const int64_t begin = static_cast<int64_t>(part) * count;
        sums.push_back(table_->in[0].narrow(0, begin, count).clone());
        for (size_t i = 1; i < table_->in.size(); ++i) sums.back().add_(table_->in[i].narrow(0, begin, count));
      }
      for (size_t part = 0; part < sums.size(); ++part) table_->out[part].copy_(sums[part]);
    });
  }
  PendingResult all_gather(const Numbers& in, const Numbers& out) override {
    return together(in, out, [this] {
      const int64_t count = table_->in[0].numel();
      for (size_t part = 0; part < table_->in.size(); ++part) {
        for (const at::Tensor& to : table_->out) {
          to.narrow(0, static_cast<int64_t>(part) * count, count).copy_(table_->in[part]);
        }
      }
    });
  }
  PendingResult broadcast(const Numbers& numbers, uint32_t root) override {
    return together(numbers, numbers, [this, root] {
      for (size_t i = 0; i < table_->out.size(); ++i) {
        if (i != root) table_->out[i].copy_(table_->in[root]);
      }
    });
  }
  Status barrier() override {
    return together({}, {}, [] {}).status();
  }
  // Nothing is under way that could fail.
  void abort() override {}

 private:
  // `work`, by the first worker, when all have come and their devices are done with what they were given before.
  template <class Work>
  PendingResult together(const Numbers& in, const Numbers& out, Work&& work) {
    const c10::DeviceGuard on_device(table_->device);
    Status status = ok_status();
    table_->in[rank_] = tensor_of(in, table_->device);
    table_->out[rank_] = tensor_of(out, table_->device);
    finish_device();
    table_->meeting.arrive_and_wait();
    if (rank_ == 0) {
      try {
        work();
        finish_device();
      } catch (const std::exception& exception) {
        status = internal_error("workers that share {} could not exchange numbers: {}", table_->device.str(), exception.what());
      }
    }
    table_->meeting.arrive_and_wait();
    TESSERA_RETURN_IF_ERROR(status);
    return std::make_unique<Done>();
  }
  void finish_device() const {
    if (table_->device.is_cpu()) return;
    const c10::impl::VirtualGuardImpl streams(table_->device.type());
    streams.synchronizeStream(streams.getStream(table_->device));
  }

  const std::shared_ptr<Table> table_;
  const size_t rank_;
};

}  // namespace

std::vector<std::unique_ptr<CollectiveGroup>> make_shared_device_groups(const std::string& device, size_t workers) {
  const auto table = std::make_shared<Table>(workers, at::Device(device));
  std::vector<std::unique_ptr<CollectiveGroup>> groups;
  for (size_t rank = 0; rank < workers; ++rank) groups.push_back(std::make_unique<SharedDeviceGroup>(table, rank));
  return groups;
}

}  // namespace tessera::collective
