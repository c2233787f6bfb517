// A SentencePiece model file (protocol buffer "sentencepiece.ModelProto", the fields that encoding
// needs), parsed without trust.
//
// Why not through libsentencepiece: its shared library exports the symbols of the protobuf it was
// built with (3.14). In a process that also has the protobuf of gRPC the two mix, and the program
// aborts before main(). Our tests compare with the library, in a program without gRPC.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tessera/base/status.h"

namespace tessera::data {

struct SentencePieceModel {
  enum class Kind { kUnigram = 1, kBpe = 2 };
  enum class PieceKind { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kByte = 6 };
  struct Piece {
    std::string text;
    float score = 0;
    PieceKind kind = PieceKind::kNormal;
  };

  Kind kind = Kind::kUnigram;
  std::vector<Piece> pieces;  // the index is the id
  uint32_t unknown_id = 0;
  uint32_t end_id = 0;  // control piece "</s>", or what the model calls it
  bool byte_fallback = false;
  std::vector<uint32_t> byte_ids;                  // 256 with byte_fallback, else none
  std::string unknown_surface = " \xe2\x81\x87 ";  // what the unknown piece decodes to

  // The normaliser.
  std::string character_map;  // "precompiled_charsmap"; empty: none
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

// Errors say which part of the model is not supported (word and char models, whitespace as suffix,
// denormalisers, restricted vocabularies) or broken. `name` is for the message.
StatusOr<SentencePieceModel> parse_sentencepiece_model(std::string_view bytes,
                                                       const std::string& name);

}  // namespace tessera::data
