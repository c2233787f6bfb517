// What travels on a peer stream, without a network: records, the sender's queue, the receiver's
// assembly.
#include <gmock/gmock.h>

#include "net/frame_assembly.h"
#include "net/net_fixture.h"
#include "net/send_queue.h"
#include "net/stream_record.h"

namespace tessera::net {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string bytes_of(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
  return bytes;
}

// The same bytes in slices of `size`.
grpc::ByteBuffer cut(const std::string& bytes, size_t size) {
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < bytes.size(); at += size) slices.emplace_back(bytes.substr(at, size));
  return grpc::ByteBuffer(slices.data(), slices.size());
}

struct Records : testing::Test {
  const Digest key = digest_of("key");
  RecordSealer sealer{key};
  RecordOpener opener{key};
  const Record record{RecordKind::kChunk, 7, 1 << 20, 123456, 5000};
};

TEST_F(Records, TravelInAnySlices) {
  for (const size_t slice : {1u, 2u, 15u, 46u, 47u, 64u, 100000u}) {
    const std::string content(1000, 'c');
    const auto received =
        opener.open(cut(bytes_of(sealer.seal(record, grpc::Slice(content))), slice));
    ASSERT_TRUE(received.ok()) << received.status();
    EXPECT_EQ(received->record.kind, record.kind);
    EXPECT_EQ(received->record.id, record.id);
    EXPECT_EQ(received->record.position, record.position);
    EXPECT_EQ(received->record.sent_at_ms, record.sent_at_ms);
    EXPECT_EQ(received->record.patience_ms, record.patience_ms);
    EXPECT_EQ(received->content_bytes, content.size());
    EXPECT_EQ(bytes_of(grpc::ByteBuffer(received->content.data(), received->content.size())),
              content);
  }
}

TEST_F(Records, EveryBitIsUnderTheTag) {
  const std::string bytes = bytes_of(sealer.seal(record, grpc::Slice("content")));
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string changed = bytes;
    changed[bit / 8] = static_cast<char>(changed[bit / 8] ^ (1 << bit % 8));
    RecordOpener fresh(key);
    EXPECT_FALSE(fresh.open(cut(changed, 64)).ok()) << bit;
  }
  EXPECT_TRUE(opener.open(cut(bytes, 64)).ok());
}

TEST_F(Records, EveryTruncationAndAnythingBehindIsRefused) {
  const std::string bytes = bytes_of(sealer.seal(record, grpc::Slice("content")));
  for (size_t size = 0; size < bytes.size(); ++size) {
    RecordOpener fresh(key);
    EXPECT_FALSE(fresh.open(cut(bytes.substr(0, size), 64)).ok()) << size;
  }
  EXPECT_FALSE(opener.open(cut(bytes + "x", 64)).ok());
}

TEST_F(Records, ReplayedLeftOutOrOfAnotherStreamIsRefused) {
  const std::string first = bytes_of(sealer.seal(record, {}));
  const std::string second = bytes_of(sealer.seal(record, {}));
  EXPECT_TRUE(opener.open(cut(first, 64)).ok());
  EXPECT_TRUE(absl::IsUnauthenticated(opener.open(cut(first, 64)).status()));
  RecordOpener skipping(key);
  EXPECT_TRUE(absl::IsUnauthenticated(skipping.open(cut(second, 64)).status()));
  RecordOpener other(digest_of("other key"));
  EXPECT_TRUE(absl::IsUnauthenticated(other.open(cut(first, 64)).status()));
}

TEST_F(Records, UnknownKindsAndLongContentAreRefused) {
  Record unknown = record;
  unknown.kind = static_cast<RecordKind>(5);
  EXPECT_TRUE(absl::IsInvalidArgument(opener.open(sealer.seal(unknown, {})).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(
      opener.open(sealer.seal(record, grpc::Slice(std::string(kChunkBytes + 1, 'c')))).status()));
}

QueuedFrame queued(uint64_t id, size_t size) {
  return {id, std::make_shared<const std::string>(size, 'f'), 0, 1000};
}
// "1B" begins frame 1, "1" goes on with it, "1X" cancels it.
std::vector<std::string> drained(SendQueue* queue, size_t most = 100) {
  std::vector<std::string> records;
  while (records.size() < most) {
    const auto chunk = queue->next();
    if (!chunk) break;
    const RecordKind kind = chunk->record.kind;
    records.push_back(std::to_string(chunk->record.id) + (kind == RecordKind::kBegin    ? "B"
                                                          : kind == RecordKind::kCancel ? "X"
                                                                                        : ""));
  }
  return records;
}

TEST(SendQueue, ABackwardOvertakesTheRestOfAForward) {
  SendQueue queue({});
  EXPECT_TRUE(queue.push(queued(1, 3 * kChunkBytes), false));
  EXPECT_TRUE(queue.push(queued(2, 10), false));
  EXPECT_THAT(drained(&queue, 1), ElementsAre("1B"));
  EXPECT_TRUE(queue.push(queued(3, kChunkBytes + 1), true));
  EXPECT_TRUE(queue.push(queued(4, 0), true));
  EXPECT_THAT(drained(&queue), ElementsAre("3B", "3", "4B", "1", "1", "2B"));
  EXPECT_TRUE(queue.empty());
}

TEST(SendQueue, ChunksTileTheFrame) {
  SendQueue queue({});
  EXPECT_TRUE(queue.push(queued(1, 2 * kChunkBytes + 5), false));
  size_t at = 0;
  while (const auto chunk = queue.next()) {
    EXPECT_EQ(chunk->offset, at);
    EXPECT_EQ(chunk->record.position, at == 0 ? 2 * kChunkBytes + 5 : at);
    at += chunk->size;
  }
  EXPECT_EQ(at, 2 * kChunkBytes + 5);
}

TEST(SendQueue, HasLimits) {
  SendQueue queue({.frames = 3, .bytes = 100});
  EXPECT_TRUE(queue.push(queued(1, 1000), false));  // alone, whatever its size
  EXPECT_FALSE(queue.push(queued(2, 1), true));
  drained(&queue);
  for (uint64_t id = 3; id < 6; ++id) EXPECT_TRUE(queue.push(queued(id, 1), id % 2 == 0));
  EXPECT_FALSE(queue.push(queued(6, 0), false));
  queue.remove(4);
  EXPECT_TRUE(queue.push(queued(7, 98), false));
  EXPECT_FALSE(queue.push(queued(8, 1), false));
  queue.clear();
  EXPECT_TRUE(queue.push(queued(9, 100), false));
}

TEST(SendQueue, OnlyWhatIsBegunIsCancelled) {
  SendQueue queue({});
  queue.push(queued(1, 2 * kChunkBytes), false);
  queue.push(queued(2, 10), false);
  EXPECT_THAT(drained(&queue, 1), ElementsAre("1B"));
  queue.remove(1);
  queue.remove(2);
  queue.remove(3);
  EXPECT_THAT(drained(&queue), ElementsAre("1X"));
}

struct Assembly : testing::Test {
  static constexpr size_t kBudget = 1000;
  std::shared_ptr<FrameBudget> budget = std::make_shared<FrameBudget>(kBudget);
  FrameAssembly assembly{500, budget};

  static ReceivedRecord record(RecordKind kind, uint64_t id, uint64_t position,
                               const std::string& content, uint64_t sent_at_ms = 0) {
    ReceivedRecord result;
    result.record = {kind, id, position, sent_at_ms, 1000};
    result.content = {grpc::Slice(content)};
    result.content_bytes = content.size();
    return result;
  }
  StatusOr<FrameAssembly::Step> begin(uint64_t id, size_t size, const std::string& content,
                                      TimeMs now_ms = 0, uint64_t sent_at_ms = 0) {
    return assembly.take(record(RecordKind::kBegin, id, size, content, sent_at_ms), now_ms);
  }
  StatusOr<FrameAssembly::Step> chunk(uint64_t id, size_t offset, const std::string& content,
                                      TimeMs now_ms = 0) {
    return assembly.take(record(RecordKind::kChunk, id, offset, content), now_ms);
  }
  static std::string problem(const StatusOr<FrameAssembly::Step>& step) {
    EXPECT_TRUE(absl::IsInvalidArgument(step.status())) << step.status();
    return message_of(step.status());
  }
};

TEST_F(Assembly, PutsInterleavedFramesTogether) {
  EXPECT_FALSE(begin(1, 4, "ab")->frame);
  EXPECT_EQ(begin(2, 2, "xy")->frame->bytes, "xy");
  EXPECT_EQ(begin(3, 0, "")->frame->bytes, "");
  EXPECT_FALSE(chunk(1, 2, "c")->frame);
  EXPECT_EQ(chunk(1, 3, "d")->frame->bytes, "abcd");
  EXPECT_EQ(assembly.partial(), 0u);
}

TEST_F(Assembly, AbuseEndsTheStream) {
  EXPECT_THAT(problem(chunk(1, 0, "x")), HasSubstr("before its beginning"));
  EXPECT_TRUE(begin(5, 4, "ab").ok());
  EXPECT_THAT(problem(begin(5, 4, "ab")), HasSubstr("begun again"));
  EXPECT_THAT(problem(begin(4, 4, "ab")), HasSubstr("begun again"));
  EXPECT_THAT(problem(begin(6, 1, "ab")), HasSubstr("longer than it said"));
  EXPECT_THAT(problem(begin(7, 4, "")), HasSubstr("an empty chunk"));
  EXPECT_THAT(problem(chunk(5, 2, "")), HasSubstr("an empty chunk"));
  EXPECT_THAT(problem(chunk(5, 1, "c")), HasSubstr("out of order"));
  EXPECT_THAT(problem(chunk(5, UINT64_MAX, "c")), HasSubstr("out of order"));
  EXPECT_THAT(problem(chunk(5, 2, "cde")), HasSubstr("longer than it said"));
  EXPECT_THAT(problem(assembly.take(record(RecordKind::kCancel, 5, 0, "x"), 0)),
              HasSubstr("cancelled with content"));
  EXPECT_THAT(problem(assembly.take(record(RecordKind::kAdmission, 5, 0, ""), 0)),
              HasSubstr("for the other side"));
  for (uint64_t id = 10; id < 13; ++id) EXPECT_TRUE(begin(id, 4, "ab").ok());
  EXPECT_THAT(problem(begin(13, 4, "ab")), HasSubstr("too many at once"));
}

TEST_F(Assembly, RefusesFramesOverTheLimitAndLeavesOutTheirRest) {
  EXPECT_EQ(begin(1, 501, "ab")->refusal, core::Admission::kCorrupt);
  EXPECT_EQ(begin(2, UINT64_MAX, "ab")->refusal, core::Admission::kCorrupt);
  const auto step = chunk(1, 2, "c");
  ASSERT_TRUE(step.ok());
  EXPECT_FALSE(step->frame || step->refusal);
}

// Only bytes that are there count: an announcement costs nothing.
TEST_F(Assembly, TheBudgetIsSharedAndComesBack) {
  FrameAssembly other(500, budget);
  EXPECT_TRUE(begin(1, 500, std::string(400, 'a')).ok());
  auto whole = other.take(record(RecordKind::kBegin, 1, 500, std::string(500, 'x')), 0);
  ASSERT_TRUE(whole.ok() && whole->frame);
  EXPECT_EQ(begin(2, 101, std::string(101, 'a'))->refusal, core::Admission::kFull);
  EXPECT_FALSE(begin(3, 500, std::string(100, 'a'))->refusal);
  EXPECT_EQ(chunk(3, 100, "b")->refusal, core::Admission::kFull);  // gives back what it held
  EXPECT_TRUE(chunk(1, 400, std::string(100, 'b'))->frame);
  EXPECT_EQ(assembly.partial(), 0u);
  whole->frame.reset();
  EXPECT_TRUE(begin(4, 400, "ab").ok());
  EXPECT_TRUE(assembly.take(record(RecordKind::kCancel, 4, 0, ""), 0).ok());
  EXPECT_EQ(assembly.partial(), 0u);
  EXPECT_TRUE(budget->take(kBudget));
}

TEST_F(Assembly, AFrameLargerThanTheFirstReserveArrivesWhole) {
  constexpr size_t kLarge = (size_t{40} << 20) + 7;
  FrameAssembly large(kLarge, std::make_shared<FrameBudget>(kLarge));
  std::string frame(kLarge, '\0');
  for (size_t i = 0; i < kLarge; i += 4096) frame[i] = static_cast<char>(i >> 12);
  std::optional<std::string> arrived;
  for (size_t at = 0; at < kLarge; at += kChunkBytes) {
    const RecordKind kind = at == 0 ? RecordKind::kBegin : RecordKind::kChunk;
    auto step = large.take(record(kind, 1, at == 0 ? kLarge : at, frame.substr(at, kChunkBytes)), 0);
    ASSERT_TRUE(step.ok()) << step.status();
    if (step->frame) arrived = std::move(step->frame->bytes);
  }
  EXPECT_TRUE(arrived == frame);
}

TEST_F(Assembly, DropsWhatItsSenderGaveUp) {
  EXPECT_TRUE(begin(1, 4, "ab", 100).ok());
  EXPECT_EQ(chunk(1, 2, "cd", 1101)->refusal, core::Admission::kFull);
  EXPECT_TRUE(begin(2, 4, "ab", 2000, 1900).ok());
  assembly.drop_late(3000);
  EXPECT_EQ(assembly.partial(), 1u);
  assembly.drop_late(3001);
  EXPECT_EQ(assembly.partial(), 0u);
  EXPECT_TRUE(budget->take(kBudget));
}

// Clocks 1 000 000 apart; the quickest record took no time that can be known.
TEST_F(Assembly, RefusesFramesThatWereTooLongOnTheirWay) {
  EXPECT_TRUE(begin(1, 1, "a", 1'000'500, 400)->frame);
  EXPECT_TRUE(begin(2, 1, "a", 1'000'500, 500)->frame);
  EXPECT_TRUE(begin(3, 1, "a", 1'002'000, 1000)->frame);  // a second late
  EXPECT_EQ(begin(4, 1, "a", 1'002'001, 1000)->refusal, core::Admission::kFull);
  EXPECT_TRUE(begin(5, 1, "a", 1'003'000, 2500)->frame);
  EXPECT_TRUE(begin(6, 1, "a", 1'003'000, UINT64_MAX).ok());
}

}  // namespace
}  // namespace tessera::net
