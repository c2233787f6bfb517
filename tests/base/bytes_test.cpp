#include "tessera/base/bytes.h"

#include <gtest/gtest.h>

#include <string>

#include "tessera/base/ids.h"

namespace tessera {
namespace {

TEST(BytesTest, NumbersAreLittleEndian) {
  ByteWriter writer;
  writer.number(uint32_t{0x01020304});
  writer.number(int16_t{-2});
  writer.number(1.0);
  writer.text("abc");
  writer.raw("\xff", 1);
  EXPECT_EQ(to_hex(writer.bytes()),
            "04030201"
            "feff"
            "000000000000f03f"
            "03000000616263"
            "ff");

  ByteReader reader(writer.bytes());
  EXPECT_EQ(reader.number<uint32_t>(), 0x01020304u);
  EXPECT_EQ(reader.number<int16_t>(), -2);
  EXPECT_EQ(reader.number<double>(), 1.0);
  EXPECT_EQ(reader.text(), "abc");
  EXPECT_EQ(reader.remaining(), 1u);
  EXPECT_FALSE(reader.done());
  EXPECT_EQ(reader.raw(1), "\xff");
  EXPECT_TRUE(reader.done());
}

TEST(BytesTest, ReaderStopsAtItsEnd) {
  ByteReader reader("abc");
  EXPECT_EQ(reader.number<uint32_t>(), 0u);
  EXPECT_FALSE(reader.ok());
  // After a failure nothing is read any more, though bytes are left.
  EXPECT_EQ(reader.number<uint8_t>(), 0u);
  EXPECT_EQ(reader.raw(1), "");
  EXPECT_FALSE(reader.done());
}

TEST(BytesTest, ReaderRefusesALengthBeyondItsEnd) {
  ByteWriter writer;
  writer.number(uint32_t{0xffffffff});
  writer.raw("ab", 2);
  ByteReader reader(writer.bytes());
  EXPECT_EQ(reader.text(), "");
  EXPECT_FALSE(reader.ok());
}

TEST(BytesTest, EmptyIsDone) {
  ByteReader reader("");
  EXPECT_TRUE(reader.done());
  EXPECT_EQ(reader.raw(0), "");
  EXPECT_TRUE(reader.done());
  reader.fail();
  EXPECT_FALSE(reader.done());
}

TEST(BytesTest, Hexadecimal) {
  EXPECT_EQ(to_hex(std::string("\x00\x7f\x80\xff", 4)), "007f80ff");
  EXPECT_EQ(from_hex("007f80fF"), std::string("\x00\x7f\x80\xff", 4));
  EXPECT_EQ(from_hex(""), "");
  for (const char* wrong : {"0", "0g", "g0", "0x", " 0", "00 ", "/0", ":0", "@0", "`0"}) {
    EXPECT_FALSE(from_hex(wrong).has_value()) << wrong;
  }
}

TEST(BytesTest, HexadecimalOfEveryByteComesBack) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
  EXPECT_EQ(from_hex(to_hex(bytes)), bytes);
}

TEST(Bytes32Test, OrderTextAndLength) {
  Digest low;
  Digest high;
  high.bytes[0] = 0x80;
  high.bytes[31] = 0x0f;
  EXPECT_LT(low, high);
  EXPECT_TRUE(low.is_zero());
  EXPECT_FALSE(high.is_zero());
  EXPECT_EQ(high.brief(), "80000000");
  EXPECT_EQ(high.hex(), "80" + std::string(60, '0') + "0f");
  Digest copy;
  EXPECT_TRUE(Digest::from(high.view(), &copy));
  EXPECT_EQ(copy, high);
  EXPECT_FALSE(Digest::from(high.view().substr(1), &copy));
  EXPECT_FALSE(Digest::from("", &copy));
}

}  // namespace
}  // namespace tessera
