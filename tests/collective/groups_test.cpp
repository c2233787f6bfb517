// Groups of 2 and 4 workers over gloo, and of workers that share a device.
#include "tessera/collective/groups.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <thread>

namespace tessera::collective {
namespace {

using ports::CollectiveGroup;
using ports::Numbers;
using std::chrono::milliseconds;

constexpr milliseconds kPatience{60000};

// Before any thread begins, as the programs do it.
[[maybe_unused]] const bool kPrepared = (prepare_process(), true);

using Groups = std::vector<std::unique_ptr<CollectiveGroup>>;

Groups groups_of(size_t workers, milliseconds timeout = kPatience) {
  auto groups = make_groups(std::vector<std::string>(workers, "cpu"), timeout);
  EXPECT_TRUE(groups.ok()) << groups.status();
  return groups.ok() ? std::move(*groups) : Groups();
}

void on_each(const Groups& groups, const std::function<void(CollectiveGroup*)>& work) {
  std::vector<std::jthread> threads;
  for (const auto& group : groups) threads.emplace_back([&, end = group.get()] { work(end); });
}

Numbers numbers(std::vector<float>& values) { return {values.data(), values.size()}; }

Status done(ports::PendingResult pending) {
  TESSERA_RETURN_IF_ERROR(pending.status());
  return (*pending)->wait();
}

class Workers : public testing::TestWithParam<size_t> {};

TEST_P(Workers, AllReduceAddsUp) {
  const Groups groups = groups_of(GetParam());
  std::vector<std::vector<float>> results(groups.size());
  on_each(groups, [&](CollectiveGroup* group) {
    std::vector<float> values{1, static_cast<float>(group->rank()), 0.5f};
    EXPECT_TRUE(done(group->all_reduce(numbers(values))).ok());
    results[group->rank()] = values;
  });
  const float count = static_cast<float>(GetParam());
  for (const auto& values : results) {
    EXPECT_EQ(values, (std::vector<float>{count, count * (count - 1) / 2, count / 2}));
  }
}

TEST_P(Workers, ReduceScatterGivesEachItsPart) {
  const Groups groups = groups_of(GetParam());
  const size_t size = GetParam();
  on_each(groups, [&](CollectiveGroup* group) {
    std::vector<float> in(2 * size), out(2);
    std::iota(in.begin(), in.end(), 0.0f);
    EXPECT_TRUE(done(group->reduce_scatter(numbers(in), numbers(out))).ok());
    const float factor = static_cast<float>(size), first = 2.0f * static_cast<float>(group->rank());
    EXPECT_EQ(out, (std::vector<float>{factor * first, factor * (first + 1)}));
  });
}

TEST_P(Workers, ReduceScatterInPlaceTouchesItsOwnPart) {
  const Groups groups = groups_of(GetParam());
  const size_t size = GetParam();
  on_each(groups, [&](CollectiveGroup* group) {
    std::vector<float> in(3 * size, static_cast<float>(group->rank() + 1));
    float* own = in.data() + 3 * group->rank();
    EXPECT_TRUE(done(group->reduce_scatter(numbers(in), {own, 3})).ok());
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(own[i], static_cast<float>(size * (size + 1) / 2));
  });
}

TEST_P(Workers, AllGatherInPlace) {
  const Groups groups = groups_of(GetParam());
  const size_t size = GetParam();
  on_each(groups, [&](CollectiveGroup* group) {
    std::vector<float> all(2 * size, -1);
    float* own = all.data() + 2 * group->rank();
    own[0] = own[1] = static_cast<float>(group->rank());
    EXPECT_TRUE(done(group->all_gather({own, 2}, numbers(all))).ok());
    for (size_t i = 0; i < all.size(); ++i) EXPECT_EQ(all[i], static_cast<float>(i / 2));
  });
}

TEST_P(Workers, SeveralOperationsUnderWay) {
  const Groups groups = groups_of(GetParam());
  on_each(groups, [&](CollectiveGroup* group) {
    std::vector<float> first(1000, 1), second(10, static_cast<float>(group->rank()));
    auto sum = group->all_reduce(numbers(first));
    auto sent = group->broadcast(numbers(second), group->size() - 1);
    ASSERT_TRUE(sum.ok() && sent.ok());
    EXPECT_TRUE((*sent)->wait().ok());
    EXPECT_TRUE((*sum)->wait().ok());
    EXPECT_EQ(first.back(), static_cast<float>(group->size()));
    EXPECT_EQ(second.front(), static_cast<float>(group->size() - 1));
    EXPECT_TRUE(group->barrier().ok());
  });
}

INSTANTIATE_TEST_SUITE_P(Gloo, Workers, testing::Values(2, 4));

TEST(Groups, AWorkerThatStaysAwayIsAnErrorInBoundedTime) {
  const Groups groups = groups_of(3, milliseconds(300));
  on_each(groups, [&](CollectiveGroup* group) {
    if (group->rank() == 2) return;
    std::vector<float> values{1};
    const Status status = done(group->all_reduce(numbers(values)));
    EXPECT_TRUE(absl::IsInternal(status)) << status;
  });
}

TEST(Groups, OfOneWorker) {
  const Groups groups = groups_of(1);
  std::vector<float> values{3};
  EXPECT_TRUE(done(groups[0]->all_reduce(numbers(values))).ok());
  EXPECT_EQ(values[0], 3);
}

TEST(Groups, RefusesDevicesThatAreNoBox) {
  EXPECT_EQ(make_groups({}, kPatience).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(make_groups({"cpu", "cuda:0"}, kPatience).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(make_groups({"cuda:1", "cuda:1"}, kPatience).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SharedDevice, DoesWhatSeparateDevicesDo) {
  const Groups groups = make_shared_device_groups("cpu", 3);
  on_each(groups, [](CollectiveGroup* group) {
    const float rank = static_cast<float>(group->rank());
    std::vector<float> all{rank, 1};
    EXPECT_TRUE(done(group->all_reduce(numbers(all))).ok());
    EXPECT_EQ(all, (std::vector<float>{3, 3}));
    // In place: the worker's own part of the input.
    std::vector<float> parts{0, 1, 2, 3, 4, 5};
    const Numbers own{parts.data() + 2 * group->rank(), 2};
    EXPECT_TRUE(done(group->reduce_scatter(numbers(parts), own)).ok());
    for (size_t i = 0; i < 6; ++i) {
      const bool mine = i / 2 == group->rank();
      EXPECT_EQ(parts[i], static_cast<float>(mine ? 3 * i : i));
    }
    std::vector<float> mine{rank}, gathered(3);
    EXPECT_TRUE(done(group->all_gather(numbers(mine), numbers(gathered))).ok());
    EXPECT_EQ(gathered, (std::vector<float>{0, 1, 2}));
    EXPECT_TRUE(group->barrier().ok());
    std::vector<float> sent{rank, -rank};
    EXPECT_TRUE(done(group->broadcast(numbers(sent), 2)).ok());
    EXPECT_EQ(sent, (std::vector<float>{2, -2}));
  });
}

}  // namespace
}  // namespace tessera::collective
