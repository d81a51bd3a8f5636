#pragma once

// Tiles live in registers only where their loops are unrolled; g++ by itself stops at 16 rounds.
#define DEMIURGIC_UNROLL _Pragma("GCC unroll 32")
