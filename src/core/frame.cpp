#include "tessera/core/frame.h"

#include <fmt/format.h>

#include "tessera/base/crypto.h"

namespace tessera::core {
namespace {

// BLAKE2b truncated to 64 bits: the project has it already, and it is fast beside the network.
uint64_t checksum(std::string_view bytes) {
  const Digest digest = digest_of(bytes);
  uint64_t value = 0;
  std::memcpy(&value, digest.bytes.data(), sizeof(value));
  return value;
}

constexpr uint32_t kMaxPathway = 64;

Admission refuse(Admission admission, std::string* why, std::string text) {
  if (why != nullptr) *why = std::move(text);
  return admission;
}

}  // namespace

uint32_t token_id_bytes(uint32_t vocab) { return vocab <= 256 ? 1 : vocab <= 65536 ? 2 : 4; }

Lease lease_of(const Frame& frame) {
  Lease lease;
  lease.microbatch = frame.microbatch;
  lease.attempt = frame.attempt;
  lease.counted_stages = frame.counted_stages;
  lease.pathway = frame.pathway;
  lease.repair = !frame.repairs.empty() && frame.repairs[0] > 0;
  lease.expires_unix_ms = frame.lease_expires_unix_ms;
  lease.signature = frame.lease_signature;
  return lease;
}

bool is_backward(std::string_view frame) {
  constexpr size_t kDirectionOffset = 36;
  return frame.size() >= kFrameHeaderBytes &&
         static_cast<uint8_t>(frame[kDirectionOffset]) == static_cast<uint8_t>(Direction::kBackward);
}

std::string encode_frame(const Frame& frame, uint32_t vocab) {
  const uint32_t id_bytes = token_id_bytes(vocab);
  std::string body;
  {
    ByteWriter writer;
    for (const MinerIndex miner : frame.pathway) writer.number(miner);
    for (const uint8_t repairs : frame.repairs) writer.number(repairs);
    if (frame.direction == Direction::kForward) {
      writer.number(frame.lease_expires_unix_ms);
      writer.raw(frame.lease_signature.data(), frame.lease_signature.size());
    }
    for (const uint32_t token : frame.tokens) writer.raw(&token, id_bytes);  // little-endian: low bytes first
    body = writer.take();
    body += frame.payload;
  }
  ByteWriter header;
  header.number(kFrameMagic);
  header.number(kFrameVersion);
  header.number(frame.boundary);
  header.number(frame.run);
  header.number(frame.epoch);
  header.number(frame.microbatch);
  header.number(frame.attempt);
  header.number(static_cast<uint8_t>(frame.direction));
  header.number(static_cast<uint8_t>(frame.kind));
  header.number(static_cast<uint8_t>(frame.codec));
  header.number(static_cast<uint8_t>(id_bytes));
  header.number(frame.batch);
  header.number(frame.context);
  header.number(frame.rank);
  header.number(frame.exponent);
  header.number(frame.counted_stages);
  header.number(frame.lifetime_ms);
  header.number(static_cast<uint32_t>(frame.pathway.size()));
  header.number(static_cast<uint32_t>(frame.tokens.size()));
  header.number(static_cast<uint32_t>(frame.repairs.size()));
  header.number(static_cast<uint64_t>(frame.payload.size()));
  // The checksum covers the header before it and all of the body.
  std::string bytes = header.take();
  const uint64_t sum = checksum(bytes + body);
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof(sum));
  TESSERA_CHECK(bytes.size() == kFrameHeaderBytes);
  return bytes + body;
}

Admission decode_frame(std::string_view bytes, const RunSpec& spec, uint64_t run, Frame* frame,
                       std::string* why) {
  ByteReader reader(bytes);
  const auto magic = reader.number<uint32_t>();
  const auto version = reader.number<uint16_t>();
  if (!reader.ok() || magic != kFrameMagic || version != kFrameVersion) {
    return refuse(Admission::kCorrupt, why,
                  fmt::format("not a boundary frame of version {} (magic {:08x}, version {}, {} bytes)",
                              kFrameVersion, magic, version, bytes.size()));
  }
  frame->boundary = reader.number<uint16_t>();
  frame->run = reader.number<uint64_t>();
  frame->epoch = reader.number<uint64_t>();
  frame->microbatch = reader.number<uint64_t>();
  frame->attempt = reader.number<uint32_t>();
  const auto direction = reader.number<uint8_t>();
  const auto kind = reader.number<uint8_t>();
  const auto codec = reader.number<uint8_t>();
  const auto id_bytes = reader.number<uint8_t>();
  frame->batch = reader.number<uint32_t>();
  frame->context = reader.number<uint32_t>();
  frame->rank = reader.number<uint32_t>();
  frame->exponent = reader.number<int32_t>();
  frame->counted_stages = reader.number<uint64_t>();
  frame->lifetime_ms = reader.number<uint32_t>();
  const auto pathway_count = reader.number<uint32_t>();
  const auto token_count = reader.number<uint32_t>();
  const auto repair_count = reader.number<uint32_t>();
  const auto payload_size = reader.number<uint64_t>();
  const auto sum = reader.number<uint64_t>();
  if (!reader.ok()) return refuse(Admission::kCorrupt, why, fmt::format("{} bytes: shorter than a frame header", bytes.size()));
  if (frame->run != run) return refuse(Admission::kWrongRun, why, fmt::format("frame of run {:016x}, this is run {:016x}", frame->run, run));

  const uint32_t rows = spec.training.microbatch_size * spec.model.context;
  const bool forward = direction == static_cast<uint8_t>(Direction::kForward);
  const uint64_t want_tokens = forward ? uint64_t{spec.training.microbatch_size} * (spec.model.context + 1) : 0;
  const uint64_t want_payload = payload_bytes(spec.boundary.codec, rows, spec.boundary.rank);
  if (direction > 1 || kind != static_cast<uint8_t>(spec.boundary.kind) ||
      codec != static_cast<uint8_t>(spec.boundary.codec) || frame->batch != spec.training.microbatch_size ||
      frame->context != spec.model.context || frame->rank != spec.boundary.rank ||
      id_bytes != token_id_bytes(spec.model.vocab) || frame->boundary + 1u >= spec.pipeline.stages ||
      token_count != want_tokens || payload_size != want_payload || pathway_count > kMaxPathway || repair_count > kMaxPathway) {
    return refuse(Admission::kWrongShape, why,
                  fmt::format("boundary {} kind {} codec {} B {} T {} r {} tokens {} payload {}: expected kind {} "
                              "codec {} B {} T {} r {} tokens {} payload {}",
                              frame->boundary, kind, codec, frame->batch, frame->context, frame->rank,
                              token_count, payload_size, static_cast<int>(spec.boundary.kind),
                              static_cast<int>(spec.boundary.codec), spec.training.microbatch_size,
                              spec.model.context, spec.boundary.rank, want_tokens, want_payload));
  }
  const uint64_t want_proof = forward ? kLeaseProofBytes : 0;
  const uint64_t want_rest = uint64_t{pathway_count} * 4 + repair_count + want_proof + want_tokens * id_bytes + want_payload;
  if (reader.remaining() != want_rest) {
    return refuse(Admission::kCorrupt, why,
                  fmt::format("{} bytes behind the header, the header promises {}", reader.remaining(), want_rest));
  }
  std::string covered(bytes.substr(0, kFrameHeaderBytes - 8));
  covered += bytes.substr(kFrameHeaderBytes);
  if (checksum(covered) != sum) return refuse(Admission::kCorrupt, why, "checksum mismatch");

  frame->direction = static_cast<Direction>(direction);
  frame->kind = static_cast<BoundaryKind>(kind);
  frame->codec = static_cast<Codec>(codec);
  frame->pathway.resize(pathway_count);
  for (MinerIndex& miner : frame->pathway) miner = reader.number<uint32_t>();
  frame->repairs.resize(repair_count);
  for (uint8_t& repairs : frame->repairs) repairs = reader.number<uint8_t>();
  if (forward) {
    frame->lease_expires_unix_ms = reader.number<TimeMs>();
    const std::string_view signature = reader.raw(frame->lease_signature.size());
    std::copy(signature.begin(), signature.end(), frame->lease_signature.begin());
  }
  frame->tokens.assign(token_count, 0);
  for (uint32_t& token : frame->tokens) {
    const std::string_view raw = reader.raw(id_bytes);
    std::memcpy(&token, raw.data(), raw.size());
    if (token >= spec.model.vocab) {
      return refuse(Admission::kWrongShape, why, fmt::format("token id {} of a vocabulary of {}", token, spec.model.vocab));
    }
  }
  frame->payload = std::string(reader.raw(payload_size));
  return Admission::kAccepted;
}

}  // namespace tessera::core
