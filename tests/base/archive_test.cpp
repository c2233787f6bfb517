#include "tessera/base/archive.h"

#include <gtest/gtest.h>

#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

namespace tessera {
namespace {

enum class Colour : uint8_t { kRed = 1, kBlue = 2 };

struct Point {
  int32_t x = 0;
  double weight = 0;
  template <class A>
  void fields(A& archive) {
    archive("x", x)("weight", weight);
  }
  bool operator==(const Point&) const = default;
};

// One of everything an archive knows.
struct Everything {
  bool flag = false;
  uint64_t number = 0;
  int8_t small = 0;
  float ratio = 0;
  Colour colour = Colour::kRed;
  std::string text;
  Digest digest;
  Signature signature{};
  std::optional<Point> point;
  std::optional<uint16_t> absent;
  std::vector<Point> points;
  std::vector<bool> flags;
  std::vector<std::vector<uint8_t>> nested;
  std::map<uint32_t, std::string> names;
  std::deque<uint16_t> queue;
  std::set<uint8_t> set;
  template <class A>
  void fields(A& archive) {
    archive("flag", flag)("number", number)("small", small)("ratio", ratio)("colour", colour)(
        "text", text)("digest", digest)("signature", signature)("point", point)("absent", absent)(
        "points", points)("flags", flags)("nested", nested)("names", names)(
        "queue", queue)("set", set);
  }
  bool operator==(const Everything&) const = default;
};

Everything example() {
  Everything value;
  value.flag = true;
  value.number = UINT64_MAX - 1;
  value.small = -3;
  value.ratio = 0.5f;
  value.colour = Colour::kBlue;
  value.text = std::string("a\0\"\\\n\xc3", 6);
  value.digest.bytes.fill(0xab);
  value.signature.fill(0x01);
  value.point = Point{-7, 1.25};
  value.points = {{1, 2}, {3, -4}};
  value.flags = {true, false};
  value.nested = {{}, {1, 2}};
  value.names = {{3, "three"}, {1, "one"}};
  value.queue = {7, 5};
  value.set = {9, 4};
  return value;
}

TEST(ArchiveTest, DecodesWhatItEncoded) {
  Everything decoded;
  ASSERT_TRUE(decode(encode(example()), &decoded));
  EXPECT_EQ(decoded, example());
  EXPECT_EQ(encode(decoded), encode(example()));

  // A value that held something else before holds nothing of it after.
  ASSERT_TRUE(decode(encode(Everything()), &decoded));
  EXPECT_EQ(decoded, Everything());
}

TEST(ArchiveTest, BytesAreTheDocumentedOnes) {
  struct Small {
    uint16_t number = 0x0102;
    bool flag = true;
    Colour colour = Colour::kBlue;
    std::string text = "hi";
    std::vector<uint8_t> items = {9};
    std::optional<uint8_t> some = 5;
    std::optional<uint8_t> none;
    std::map<uint8_t, uint8_t> pairs = {{7, 8}};
    void fields(Encoder& archive) {
      archive("number", number)("flag", flag)("colour", colour)("text", text)("items", items)(
          "some", some)("none", none)("pairs", pairs);
    }
  };
  EXPECT_EQ(to_hex(encode(Small())),
            "0201"          // little-endian
            "01"            // bool
            "02"            // enum
            "020000006869"  // count, text
            "0100000009"    // count, items
            "0105"          // present, value
            "00"            // absent
            "010000000708");
}

TEST(ArchiveTest, RefusesEveryTruncationAndAnythingMore) {
  const std::string bytes = encode(example());
  for (size_t size = 0; size < bytes.size(); ++size) {
    Everything value;
    EXPECT_FALSE(decode(std::string_view(bytes).substr(0, size), &value)) << size;
  }
  Everything value;
  EXPECT_FALSE(decode(bytes + '\0', &value));
}

// Whatever is decoded encodes to the same bytes: no two byte strings stand for one value.
TEST(ArchiveTest, AcceptsOneEncodingOnly) {
  const std::string bytes = encode(example());
  int accepted = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    for (int delta = 1; delta < 256; ++delta) {
      std::string changed = bytes;
      changed[i] = static_cast<char>(changed[i] + delta);
      Everything value;
      if (!decode(changed, &value)) continue;
      ++accepted;
      ASSERT_EQ(encode(value), changed) << "byte " << i;
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(ArchiveTest, ItemsOfASetMustAscend) {
  const std::string good = encode(std::vector<uint8_t>{1, 2});
  std::set<uint8_t> set;
  EXPECT_TRUE(decode(good, &set));
  EXPECT_FALSE(decode(encode(std::vector<uint8_t>{2, 1}), &set));
  EXPECT_FALSE(decode(encode(std::vector<uint8_t>{1, 1}), &set));
}

TEST(ArchiveTest, MapKeysMustAscend) {
  const auto pairs = [](const std::vector<std::pair<uint8_t, uint8_t>>& items) {
    ByteWriter writer;
    writer.number(static_cast<uint32_t>(items.size()));
    for (const auto& [key, value] : items) {
      writer.number(key);
      writer.number(value);
    }
    return writer.take();
  };
  std::map<uint8_t, uint8_t> value;
  EXPECT_TRUE(decode(pairs({{1, 0}, {2, 0}}), &value));
  EXPECT_FALSE(decode(pairs({{2, 0}, {1, 0}}), &value));
  EXPECT_FALSE(decode(pairs({{1, 0}, {1, 0}}), &value));
}

TEST(ArchiveTest, CountsAreCheckedBeforeAllocation) {
  ByteWriter writer;
  writer.number(uint32_t{0xffffffff});
  writer.number(uint32_t{0});
  std::vector<std::string> texts;
  EXPECT_FALSE(decode(writer.bytes(), &texts));
  EXPECT_LT(texts.capacity(), 8u);
  std::map<uint32_t, uint32_t> pairs;
  EXPECT_FALSE(decode(writer.bytes(), &pairs));
  std::string text;
  EXPECT_FALSE(decode(writer.bytes(), &text));
}

TEST(ArchiveTest, BoolIsZeroOrOne) {
  bool value = false;
  EXPECT_TRUE(decode(std::string_view("\x01", 1), &value));
  EXPECT_TRUE(value);
  EXPECT_FALSE(decode(std::string_view("\x02", 1), &value));
}

TEST(ArchiveTest, Json) {
  const std::string json = to_json(example());
  EXPECT_EQ(json, R"({"flag":true,"number":18446744073709551614,"small":-3,"ratio":0.5,"colour":2,)"
                  R"("text":"a\u0000\"\\\u000a\u00c3",)"
                  R"("digest":")" +
                      example().digest.hex() + R"(","signature":")" +
                      to_hex({reinterpret_cast<const char*>(example().signature.data()), 64}) +
                      R"(",)"
                      R"("point":{"x":-7,"weight":1.25},"absent":null,)"
                      R"("points":[{"x":1,"weight":2},{"x":3,"weight":-4}],"flags":[true,false],)"
                      R"("nested":[[],[1,2]],"names":[[1,"one"],[3,"three"]],)"
                      R"("queue":[7,5],"set":[4,9]})");
}

TEST(ArchiveTest, JsonHasNoNanOrInfinity) {
  EXPECT_EQ(to_json(std::vector<double>{std::nan(""), std::numeric_limits<double>::infinity(),
                                        1e300, 0.1}),
            "[null,null,1e+300,0.1]");
}

TEST(ArchiveTest, NotANumberKeepsItsBits) {
  const uint64_t bits = 0x7ff8000000000123;
  Point point;
  std::memcpy(&point.weight, &bits, sizeof(bits));
  Point decoded;
  ASSERT_TRUE(decode(encode(point), &decoded));
  EXPECT_EQ(encode(decoded), encode(point));
}

}  // namespace
}  // namespace tessera
