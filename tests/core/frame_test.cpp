#include "tessera/core/frame.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tessera/base/crypto.h"
#include "tessera/core/stage_layout.h"

namespace tessera::core {
namespace {

using testing::HasSubstr;

constexpr uint64_t kRun = 0x1122334455667788;
// Where the header keeps what the tests change.
constexpr size_t kBoundaryAt = 6, kRunAt = 8, kDirectionAt = 36, kKindAt = 37, kCodecAt = 38,
                 kIdBytesAt = 39, kBatchAt = 40, kContextAt = 44, kRankAt = 48,
                 kPathwayCountAt = 68, kTokenCountAt = 72, kRepairCountAt = 76, kPayloadSizeAt = 80,
                 kChecksumAt = 88;

RunSpec spec_of(BoundaryKind kind, Codec codec, uint32_t vocab = 256) {
  RunSpec spec;
  spec.model = {.layers = 3,
                .width = 16,
                .heads = 2,
                .kv_heads = 2,
                .ffn_width = 16,
                .vocab = vocab,
                .context = 4};
  spec.training.microbatch_size = 2;
  spec.boundary.kind = kind;
  spec.boundary.codec = codec;
  spec.boundary.rank = kind == BoundaryKind::kNone ? 0 : 5;
  TESSERA_CHECK(validate(&spec).ok());
  return spec;
}

Frame frame_of(const RunSpec& spec, Direction direction) {
  Frame frame;
  frame.run = kRun;
  frame.epoch = 7;
  frame.microbatch = uint64_t{1} << 40;
  frame.attempt = 3;
  frame.boundary = 1;
  frame.direction = direction;
  frame.kind = spec.boundary.kind;
  frame.codec = spec.boundary.codec;
  frame.batch = 2;
  frame.context = 4;
  frame.rank = static_cast<uint32_t>(boundary_width(spec));
  frame.exponent = -42;
  frame.counted_stages = 5;
  frame.lifetime_ms = 1234;
  if (direction == Direction::kForward) {
    frame.pathway = {4, 9, kNoMiner};
    frame.repairs = {0, 2, 255};
    frame.lease_expires_unix_ms = 1234567890123;
    for (size_t i = 0; i < frame.lease_signature.size(); ++i) frame.lease_signature[i] = static_cast<uint8_t>(i + 1);
    for (uint32_t i = 0; i < 10; ++i) frame.tokens.push_back((i * 7919) % spec.model.vocab);
    frame.tokens.back() = spec.model.vocab - 1;
  }
  frame.payload.resize(payload_bytes(spec.boundary.codec, 8, frame.rank));
  for (size_t i = 0; i < frame.payload.size(); ++i)
    frame.payload[i] = static_cast<char>(i * 37 + 1);
  return frame;
}

void expect_same(const Frame& a, const Frame& b) {
  EXPECT_EQ(std::tie(a.run, a.epoch, a.microbatch, a.attempt, a.boundary, a.direction, a.kind,
                     a.codec, a.batch, a.context, a.rank, a.exponent, a.counted_stages,
                     a.lifetime_ms, a.pathway, a.repairs, a.lease_expires_unix_ms, a.lease_signature, a.tokens, a.payload),
            std::tie(b.run, b.epoch, b.microbatch, b.attempt, b.boundary, b.direction, b.kind,
                     b.codec, b.batch, b.context, b.rank, b.exponent, b.counted_stages,
                     b.lifetime_ms, b.pathway, b.repairs, b.lease_expires_unix_ms, b.lease_signature, b.tokens, b.payload));
}

// With a checksum that fits, as a sender with other settings or with bad intentions would make it.
std::string with_checksum(std::string bytes) {
  const Digest digest = digest_of(bytes.substr(0, kChecksumAt) + bytes.substr(kFrameHeaderBytes));
  return bytes.replace(kChecksumAt, 8, std::string(digest.view().substr(0, 8)));
}

template <class T>
std::string with_field(std::string bytes, size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof(value));
  return with_checksum(bytes);
}

Admission admission_of(std::string_view bytes, const RunSpec& spec, std::string* why = nullptr) {
  Frame frame;
  return decode_frame(bytes, spec, kRun, &frame, why);
}

TEST(Frame, EveryKindCodecAndDirectionComesBackAsItWent) {
  for (const BoundaryKind kind : {BoundaryKind::kNone, BoundaryKind::kIota, BoundaryKind::kResidual,
                                  BoundaryKind::kAnchored}) {
    for (const Codec codec : {Codec::kFp32, Codec::kBf16, Codec::kInt8, Codec::kInt4}) {
      for (const uint32_t vocab : {256u, 257u, 65536u, 65537u}) {
        for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
          const RunSpec spec = spec_of(kind, codec, vocab);
          const Frame sent = frame_of(spec, direction);
          const std::string bytes = encode_frame(sent, vocab);
          EXPECT_EQ(bytes.size(), kFrameHeaderBytes + 4 * sent.pathway.size() +
                                      sent.repairs.size() +
                                      (direction == Direction::kForward ? kLeaseProofBytes : 0) +
                                      token_id_bytes(vocab) * sent.tokens.size() +
                                      sent.payload.size());
          Frame received;
          std::string why;
          ASSERT_EQ(decode_frame(bytes, spec, kRun, &received, &why), Admission::kAccepted) << why;
          expect_same(sent, received);
        }
      }
    }
  }
}

TEST(Frame, TokenIdsTakeOneTwoOrFourBytes) {
  EXPECT_EQ(token_id_bytes(2), 1u);
  EXPECT_EQ(token_id_bytes(256), 1u);
  EXPECT_EQ(token_id_bytes(257), 2u);
  EXPECT_EQ(token_id_bytes(65536), 2u);
  EXPECT_EQ(token_id_bytes(65537), 4u);
}

TEST(Frame, EveryTruncationAndExtensionIsRefused) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, Codec::kInt4);
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const std::string bytes = encode_frame(frame_of(spec, direction), 256);
    for (size_t length = 0; length < bytes.size(); ++length) {
      ASSERT_EQ(admission_of(std::string_view(bytes).substr(0, length), spec), Admission::kCorrupt)
          << length;
    }
    EXPECT_EQ(admission_of(bytes + '\0', spec), Admission::kCorrupt);
  }
}

TEST(Frame, EveryChangedByteIsRefused) {
  const RunSpec spec = spec_of(BoundaryKind::kResidual, Codec::kInt8, 300);
  for (const Direction direction : {Direction::kForward, Direction::kBackward}) {
    const std::string bytes = encode_frame(frame_of(spec, direction), 300);
    for (size_t at = 0; at < bytes.size(); ++at) {
      for (const int flip : {1, 2, 4, 8, 16, 32, 64, 128, 255}) {
        std::string changed = bytes;
        changed[at] = static_cast<char>(changed[at] ^ flip);
        std::string why;
        ASSERT_NE(admission_of(changed, spec, &why), Admission::kAccepted) << at;
        EXPECT_NE(why, "");
      }
    }
  }
}

TEST(Frame, NoiseIsRefused) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, Codec::kInt4);
  const std::string bytes = encode_frame(frame_of(spec, Direction::kForward), 256);
  uint32_t noise = 1;
  for (int round = 0; round < 2000; ++round) {
    std::string changed = bytes;
    for (size_t at = 6; at < changed.size(); ++at) {  // magic and version stay
      noise = noise * 1664525 + 1013904223;
      if (noise >> 24 < 40) changed[at] = static_cast<char>(noise >> 16);
    }
    ASSERT_NE(changed, bytes);
    EXPECT_NE(admission_of(changed, spec), Admission::kAccepted);
  }
}

TEST(Frame, AnotherRunIsRefusedByName) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, Codec::kInt4);
  const std::string bytes =
      with_field(encode_frame(frame_of(spec, Direction::kForward), 256), kRunAt, kRun + 1);
  std::string why;
  EXPECT_EQ(admission_of(bytes, spec, &why), Admission::kWrongRun);
  EXPECT_EQ(why, "frame of run 1122334455667789, this is run 1122334455667788");
}

TEST(Frame, EveryOtherShapeIsRefused) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, Codec::kInt4);
  const std::string good = encode_frame(frame_of(spec, Direction::kForward), 256);
  ASSERT_EQ(with_checksum(good), good);
  const std::pair<const char*, std::string> changes[] = {
      {"direction", with_field<uint8_t>(good, kDirectionAt, 2)},
      {"a backward frame with tokens", with_field<uint8_t>(good, kDirectionAt, 1)},
      {"kind", with_field<uint8_t>(good, kKindAt, 0)},
      {"codec", with_field<uint8_t>(good, kCodecAt, 2)},
      {"token id bytes", with_field<uint8_t>(good, kIdBytesAt, 2)},
      {"boundary behind the last", with_field<uint16_t>(good, kBoundaryAt, 2)},
      {"boundary", with_field<uint16_t>(good, kBoundaryAt, 0xffff)},
      {"batch", with_field<uint32_t>(good, kBatchAt, 3)},
      {"context", with_field<uint32_t>(good, kContextAt, 5)},
      {"rank", with_field<uint32_t>(good, kRankAt, 6)},
      {"pathway", with_field<uint32_t>(good, kPathwayCountAt, 65)},
      {"tokens", with_field<uint32_t>(good, kTokenCountAt, 11)},
      {"all the tokens there are", with_field<uint32_t>(good, kTokenCountAt, UINT32_MAX)},
      {"repairs", with_field<uint32_t>(good, kRepairCountAt, 65)},
      {"payload", with_field<uint64_t>(good, kPayloadSizeAt, 1)},
      {"all the payload there is", with_field<uint64_t>(good, kPayloadSizeAt, UINT64_MAX)},
  };
  for (const auto& [what, bytes] : changes) {
    std::string why;
    EXPECT_EQ(admission_of(bytes, spec, &why), Admission::kWrongShape) << what;
    EXPECT_THAT(why, HasSubstr("expected kind 3")) << what;
  }
}

TEST(Frame, LengthsThatDoNotFitTheBytesAreRefused) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, Codec::kInt4);
  const std::string good = encode_frame(frame_of(spec, Direction::kForward), 256);
  std::string why;
  for (const uint32_t count : {2u, 4u, 64u}) {
    EXPECT_EQ(admission_of(with_field(good, kPathwayCountAt, count), spec, &why),
              Admission::kCorrupt);
    EXPECT_THAT(why, HasSubstr("the header promises"));
  }
  EXPECT_EQ(admission_of(with_checksum(good + "x"), spec), Admission::kCorrupt);
}

TEST(Frame, ATokenOutsideTheVocabularyIsRefused) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, Codec::kInt4, 300);
  Frame frame = frame_of(spec, Direction::kForward);
  frame.tokens[3] = 300;
  std::string why;
  EXPECT_EQ(admission_of(encode_frame(frame, 300), spec, &why), Admission::kWrongShape);
  EXPECT_EQ(why, "token id 300 of a vocabulary of 300");
}

TEST(Frame, OtherVersionsAreRefusedByName) {
  const RunSpec spec = spec_of(BoundaryKind::kAnchored, Codec::kInt4);
  const std::string good = encode_frame(frame_of(spec, Direction::kBackward), 256);
  std::string why;
  EXPECT_EQ(admission_of(with_field<uint16_t>(good, 4, 4), spec, &why), Admission::kCorrupt);
  EXPECT_THAT(why, HasSubstr("not a boundary frame of version 3 (magic 52465354, version 4"));
}

}  // namespace
}  // namespace tessera::core
