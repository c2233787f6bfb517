#include "data/sentencepiece_model.h"

#include <bit>
#include <set>
#include <utility>

#include "tessera/base/bytes.h"

namespace tessera::data {
namespace {

constexpr uint32_t kMaxPieces = 1u << 22;

// One field after the other of a protocol buffer message.
class MessageReader {
 public:
  struct Field {
    uint32_t number = 0;
    uint64_t value = 0;      // of a varint or fixed field
    std::string_view bytes;  // of a length-delimited field
  };
  explicit MessageReader(std::string_view message) : reader_(message) {}
  // False at the end and after an error.
  bool next(Field* field) {
    if (!reader_.ok() || reader_.remaining() == 0) return false;
    *field = {};
    const uint64_t key = varint();
    field->number = static_cast<uint32_t>(key >> 3);
    switch (key & 7) {
      case 0:
        field->value = varint();
        break;
      case 1:
        field->value = reader_.number<uint64_t>();
        break;
      case 2:
        field->bytes = reader_.raw(varint());
        break;
      case 5:
        field->value = reader_.number<uint32_t>();
        break;
      default:
        reader_.fail();
    }
    return reader_.ok();
  }
  bool ok() const { return reader_.ok(); }

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = reader_.number<uint8_t>();
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if ((byte & 0x80) == 0) return value;
    }
    reader_.fail();
    return 0;
  }
  ByteReader reader_;
};

// What is in the file beyond what SentencePieceModel keeps.
struct Extras {
  std::string end_piece = "</s>";
  bool whitespace_as_suffix = false;
  bool denormalizer = false;
  uint64_t kind = 1;
  std::vector<uint64_t> piece_kinds;
};

bool parse_piece(std::string_view message, SentencePieceModel* model, Extras* extras) {
  SentencePieceModel::Piece piece;
  uint64_t kind = 1;
  MessageReader reader(message);
  for (MessageReader::Field field; reader.next(&field);) {
    if (field.number == 1) piece.text = field.bytes;
    if (field.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number == 3) kind = field.value;
  }
  model->pieces.push_back(std::move(piece));
  extras->piece_kinds.push_back(kind);
  return reader.ok();
}

bool parse_trainer(std::string_view message, SentencePieceModel* model, Extras* extras) {
  MessageReader reader(message);
  for (MessageReader::Field field; reader.next(&field);) {
    if (field.number == 3) extras->kind = field.value;
    if (field.number == 24) extras->whitespace_as_suffix = field.value != 0;
    if (field.number == 35) model->byte_fallback = field.value != 0;
    if (field.number == 44) model->unknown_surface = field.bytes;
    if (field.number == 47 && !field.bytes.empty()) extras->end_piece = field.bytes;
  }
  return reader.ok();
}

bool parse_normalizer(std::string_view message, SentencePieceModel* model) {
  MessageReader reader(message);
  for (MessageReader::Field field; reader.next(&field);) {
    if (field.number == 2) model->character_map = field.bytes;
    if (field.number == 3) model->add_dummy_prefix = field.value != 0;
    if (field.number == 4) model->remove_extra_whitespaces = field.value != 0;
    if (field.number == 5) model->escape_whitespaces = field.value != 0;
  }
  return reader.ok();
}

bool parse_denormalizer(std::string_view message, Extras* extras) {
  MessageReader reader(message);
  for (MessageReader::Field field; reader.next(&field);) {
    if (field.number == 2 && !field.bytes.empty()) extras->denormalizer = true;
  }
  return reader.ok();
}

bool parse_fields(std::string_view bytes, SentencePieceModel* model, Extras* extras) {
  MessageReader reader(bytes);
  for (MessageReader::Field field; reader.next(&field);) {
    bool ok = true;
    if (field.number == 1) {
      ok = model->pieces.size() < kMaxPieces && parse_piece(field.bytes, model, extras);
    } else if (field.number == 2) {
      ok = parse_trainer(field.bytes, model, extras);
    } else if (field.number == 3) {
      ok = parse_normalizer(field.bytes, model);
    } else if (field.number == 5) {
      ok = parse_denormalizer(field.bytes, extras);
    }
    if (!ok) return false;
  }
  return reader.ok();
}

Status check_supported(const Extras& extras, const std::string& name) {
  if (extras.kind != 1 && extras.kind != 2) {
    return invalid_argument(
        "{}: SentencePiece model type {} is not supported; train a unigram (1) or "
        "bpe (2) model",
        name, extras.kind);
  }
  if (extras.whitespace_as_suffix) {
    return invalid_argument("{}: a model with treat_whitespace_as_suffix is not supported", name);
  }
  if (extras.denormalizer) {
    return invalid_argument("{}: a model with denormalization rules is not supported", name);
  }
  return ok_status();
}

// Gives every piece its kind and finds the unknown piece, the end piece and the byte pieces.
Status resolve_pieces(const Extras& extras, const std::string& name, SentencePieceModel* model) {
  using PieceKind = SentencePieceModel::PieceKind;
  std::set<std::pair<bool, std::string_view>> seen;
  constexpr uint32_t kNone = UINT32_MAX;
  uint32_t unknown = kNone, end = kNone;
  std::vector<uint32_t> byte_ids(256, kNone);
  for (uint32_t id = 0; id < model->pieces.size(); ++id) {
    SentencePieceModel::Piece& piece = model->pieces[id];
    const uint64_t kind = extras.piece_kinds[id];
    if (kind == 5) {
      return invalid_argument(
          "{}: piece {} is marked unused: a restricted vocabulary is not supported", name, id);
    }
    if (kind < 1 || kind > 6) return data_loss("{}: piece {} is of kind {}", name, id, kind);
    piece.kind = static_cast<PieceKind>(kind);
    if (piece.text.empty() || piece.text.find('\0') != std::string::npos) {
      return data_loss("{}: piece {} is empty or has a zero byte", name, id);
    }
    const bool matches_text =
        piece.kind == PieceKind::kNormal || piece.kind == PieceKind::kUserDefined;
    if (!seen.emplace(matches_text, piece.text).second) {
      return data_loss("{}: piece {} ({}) is there twice", name, id, piece.text);
    }
    if (piece.kind == PieceKind::kUnknown) {
      if (unknown != kNone)
        return data_loss("{}: pieces {} and {} are both unknown", name, unknown, id);
      unknown = id;
    }
    if (piece.kind == PieceKind::kControl && piece.text == extras.end_piece) end = id;
    if (piece.kind == PieceKind::kByte) {
      unsigned byte = 256;
      for (unsigned candidate = 0; candidate < 256; ++candidate) {
        if (piece.text == fmt::format("<0x{:02X}>", candidate)) byte = candidate;
      }
      if (byte == 256) return data_loss("{}: piece {} ({}) is not a byte", name, id, piece.text);
      byte_ids[byte] = id;
    }
  }
  if (unknown == kNone) return data_loss("{}: no piece for the unknown", name);
  if (end == kNone) {
    return invalid_argument(
        "{}: no control piece {}, which has to end every document; train the model "
        "without --eos_id=-1",
        name, extras.end_piece);
  }
  model->unknown_id = unknown;
  model->end_id = end;
  if (!model->byte_fallback) return ok_status();
  for (unsigned byte = 0; byte < 256; ++byte) {
    if (byte_ids[byte] == kNone) return data_loss("{}: no piece for byte {}", name, byte);
  }
  model->byte_ids = std::move(byte_ids);
  return ok_status();
}

}  // namespace

StatusOr<SentencePieceModel> parse_sentencepiece_model(std::string_view bytes,
                                                       const std::string& name) {
  SentencePieceModel model;
  Extras extras;
  if (!parse_fields(bytes, &model, &extras) || model.pieces.empty()) {
    return data_loss(
        "{}: not a SentencePiece model, or a broken one: give the .model file that "
        "spm_train wrote",
        name);
  }
  TESSERA_RETURN_IF_ERROR(check_supported(extras, name));
  model.kind = static_cast<SentencePieceModel::Kind>(extras.kind);
  TESSERA_RETURN_IF_ERROR(resolve_pieces(extras, name, &model));
  return model;
}

}  // namespace tessera::data
