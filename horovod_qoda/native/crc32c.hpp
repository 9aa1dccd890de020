// CRC32C with the instruction of SSE 4.2.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qoda::sse42 {

uint32_t crc32c(uint32_t crc, const uint8_t* data, size_t n);

}  // namespace qoda::sse42
