/* A JPEG at an eighth of its width and height, without the work that an eighth has no use for.

At that scale every 8 x 8 block of brightness becomes one pixel, its mean, which is the block's first coefficient. The
63 others are of no use, but they have to be passed: no code says where the next one begins. libjpeg-turbo takes them
one by one, which is nearly all that it does for such a photo. Here a table says, for any 13 bits, how many whole
coefficients they hold, so that two or three are passed in a step.

Only the usual photo is decoded: baseline, 8 bits, grey or YCbCr in one scan, every bit in its place. For any other the
answer is None: libjpeg-turbo is to decode it, or to say what is wrong with it. The pixels are those that libjpeg-turbo
gives at scale 1/8, to the last bit, so nobody has to know who decoded a photo.

The format: ITU-T T.81 (JPEG) and T.871 (JFIF). Widths and heights are of the small picture, unless they are full_. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    BLOCK = 64,
    STEP_BITS = 13,      /* looked at in one step when coefficients are passed: a table of half a level-1 cache */
    LOOK_BITS = 9,       /* looked at in one step when a code is read; longer ones are searched for */
    PADDING = 2048,      /* zeros behind an interval, for a unit of six blocks, 248 bytes each at most, and a look ahead */
    MOST_DC_BITS = 11,   /* of 8-bit photos (T.81, table F.1); libjpeg refuses codes for more than 15 */
    MOST_SIDE = 65500,   /* libjpeg refuses longer ones */
    ENDS = 128,          /* added to a step's coefficients when the block ends with it */
    NO_STEP = 256,       /* instead of them: the next coefficient does not fit in a step */
    FAR = 8191,          /* no photo has such coefficients, and libjpeg's answers to them differ between processors */
    FAR_SAMPLE = 511,    /* nor such samples, counted from the middle */
};

enum { RST0 = 0xd0, SOI = 0xd8, EOI = 0xd9, SOS = 0xda, DQT = 0xdb, DRI = 0xdd, DHT = 0xc4, SOF0 = 0xc0, SOF1 = 0xc1 };
enum { APP0 = 0xe0, APP14 = 0xee, APP15 = 0xef, COM = 0xfe };

/* A Huffman code (T.81, annex C). A found symbol is symbol << 8 | length of its code; 0 stands for none. */
typedef struct {
    uint8_t counts[17];               /* of codes, by their length */
    uint8_t symbols[256];
    int32_t first[17];                /* by length: the place in `symbols` of its first code, less that code */
    uint32_t beyond[17];              /* by length: 1 + its last code, shifted to 16 bits */
    uint16_t look[1 << LOOK_BITS];    /* found symbols */
    uint16_t step[1 << STEP_BITS];    /* whole coefficients (and ENDS) << 6 | their bits; NO_STEP << 6 */
    int there, made, has_steps;
} Code;

typedef struct {
    int id;
    int across, down;                 /* blocks in a unit */
    int quartered;                    /* whether a block gives 2 x 2 samples instead of one */
    int quantizer, dc_code, ac_code;
    int32_t dc;                       /* of the block before */
    uint8_t *samples;                 /* of one row of units, `stride` a line */
} Component;

/* The next bits, left-aligned: at least `have` of them are right. */
typedef struct {
    uint64_t window;
    uint64_t have;
    const uint8_t *next;              /* the byte behind them */
} Bits;

typedef struct {
    const uint8_t *at, *end;          /* what has not been read of the file */
    int full_width, full_height, count, restart;
    int jfif, adobe;                  /* adobe: the colour transform that it names, -1 where it names none */
    uint16_t quantizers[4][BLOCK];    /* in zigzag order */
    int has_quantizer[4];
    Code dc_codes[4], ac_codes[4];
    Component components[3];
    uint8_t *interval, *interval_end; /* its bits, without the zeros that are stuffed into a file, then PADDING */
    Bits bits;
} Photo;

static int word(const uint8_t *at) { return at[0] << 8 | at[1]; }

/* ---- codes ---- */

/* The symbol whose code the left-aligned bits begin with. */
static inline unsigned find_symbol(const Code *code, uint64_t bits) {
    unsigned found = code->look[bits >> (64 - LOOK_BITS)];
    if (found) return found;
    uint32_t some = (uint32_t)(bits >> 48);
    for (unsigned length = LOOK_BITS + 1; length <= 16; length++)
        if (some < code->beyond[length])
            return (unsigned)code->symbols[code->first[length] + (int32_t)(some >> (16 - length))] << 8 | length;
    return 0;
}

/* Makes what finds symbols, of the counts; false where they make no code, or use all ones, which no code may be. */
static int make_code(Code *code) {
    uint32_t next = 0;
    int32_t place = 0;
    if (code->made) return 1;
    for (int length = 1; length <= 16; length++, next <<= 1) {
        code->first[length] = place - (int32_t)next;
        if (next + code->counts[length] >= 1u << length) return 0;
        for (int i = 0; i < code->counts[length]; i++, next++, place++) {
            if (length > LOOK_BITS) continue;
            uint32_t spare = LOOK_BITS - (uint32_t)length;
            for (uint32_t tail = 0; tail < 1u << spare; tail++)
                code->look[next << spare | tail] = (uint16_t)(code->symbols[place] << 8 | length);
        }
        code->beyond[length] = next << (16 - length);
    }
    code->made = 1;
    return 1;
}

/* A coefficient's code says how many zeros come before it, and how many bits its value has (T.81, F.1.2.2). */
static inline unsigned run_of(unsigned found) { return found >> 12; }
static inline unsigned size_of(unsigned found) { return found >> 8 & 15; }
static inline unsigned bits_of(unsigned found) { return (found & 255) + size_of(found); }
static inline int is_end(unsigned found) { return !(found >> 8); }
/* No code at all, or one that baseline photos do not have: neither a value, nor sixteen zeros, nor the end. */
static inline int is_odd(unsigned found) {
    return !found || (!size_of(found) && run_of(found) != 0 && run_of(found) != 15);
}

static void make_steps(Code *code) {
    if (code->has_steps) return;
    for (uint32_t some = 0; some < 1u << STEP_BITS; some++) {
        unsigned used = 0, passed = 0, ends = 0;
        while (!ends && used < STEP_BITS) {
            unsigned found = find_symbol(code, (uint64_t)some << (64 - STEP_BITS + used));
            if (is_odd(found) || used + bits_of(found) > STEP_BITS) break;
            if (!is_end(found) && passed + run_of(found) + 1 >= BLOCK) break;
            used += bits_of(found);
            if (is_end(found)) ends = ENDS;
            else passed += run_of(found) + 1;
        }
        code->step[some] = (uint16_t)(used ? (passed + ends) << 6 | used : NO_STEP << 6);
    }
    code->has_steps = 1;
}

/* ---- what comes before the picture ---- */

static int read_quantizers(Photo *photo, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        int wide = *at >> 4, which = *at & 15;
        at++;
        if (wide > 1 || which > 3 || end - at < BLOCK << wide) return 0;
        for (int k = 0; k < BLOCK; k++, at += 1 + wide) photo->quantizers[which][k] = (uint16_t)(wide ? word(at) : *at);
        photo->has_quantizer[which] = 1;
    }
    return 1;
}

static int read_codes(Photo *photo, const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        if (end - at < 17 || (*at & 15) > 3 || *at >> 4 > 1) return 0;
        int is_dc = !(*at >> 4), total = 0;
        Code *code = (is_dc ? photo->dc_codes : photo->ac_codes) + (*at & 15);
        memcpy(code->counts, at, sizeof code->counts);
        for (int length = 1; length <= 16; length++) total += code->counts[length];
        at += sizeof code->counts;
        if (total > 256 || end - at < total) return 0;
        memcpy(code->symbols, at, (size_t)total);
        for (int i = 0; is_dc && i < total; i++)
            if (code->symbols[i] > MOST_DC_BITS) return 0;
        at += total;
        code->there = 1;
    }
    return 1;
}

static int read_frame(Photo *photo, const uint8_t *at, const uint8_t *end) {
    if (photo->count || end - at < 6 || at[0] != 8) return 0;
    if (word(at + 1) != photo->full_height || word(at + 3) != photo->full_width) return 0;
    photo->count = at[5];
    at += 6;
    if ((photo->count != 1 && photo->count != 3) || end - at != 3 * photo->count) return 0;
    for (int i = 0; i < photo->count; i++, at += 3) {
        Component *component = photo->components + i;
        *component = (Component){.id = at[0], .across = at[1] >> 4, .down = at[1] & 15, .quantizer = at[2]};
        if (component->quantizer > 3) return 0;
        /* One sample of colour for one, two or four of brightness. One component alone comes block by block. */
        int most = photo->count == 3 && i == 0 ? 2 : 1;
        if (component->across < 1 || component->across > most) return 0;
        if (component->down < 1 || component->down > most) return 0;
    }
    return 1;
}

static int read_scan(Photo *photo, const uint8_t *at, const uint8_t *end) {
    if (!photo->count || end - at != 4 + 2 * photo->count || *at++ != photo->count) return 0;
    for (int i = 0; i < photo->count; i++, at += 2) {
        Component *component = photo->components + i;
        component->dc_code = at[1] >> 4;
        component->ac_code = at[1] & 15;
        if (at[0] != component->id || component->dc_code > 3 || component->ac_code > 3) return 0;
        Code *dc = photo->dc_codes + component->dc_code, *ac = photo->ac_codes + component->ac_code;
        if (!dc->there || !ac->there || !make_code(dc) || !make_code(ac)) return 0;
        if (!photo->has_quantizer[component->quantizer]) return 0;
        /* For four blocks of brightness libjpeg takes four samples of a block of colour instead of spreading one. */
        component->quartered = i && photo->components[0].across == 2 && photo->components[0].down == 2;
    }
    return at[0] == 0 && at[1] == BLOCK - 1 && at[2] == 0;
}

/* Whether three components are sure to be YCbCr: what says so, in the order in which libjpeg asks. */
static int is_ycc(const Photo *photo) {
    const Component *three = photo->components;
    if (photo->jfif) return 1;
    if (photo->adobe >= 0) return photo->adobe == 1;
    return three[0].id == 1 && three[1].id == 2 && three[2].id == 3;
}

/* Reads up to the first bit of the picture; false when it is not the usual photo. */
static int read_headers(Photo *photo) {
    photo->adobe = -1;
    if (photo->end - photo->at < 2 || photo->at[0] != 0xff || photo->at[1] != SOI) return 0;
    photo->at += 2;
    for (;;) {
        if (photo->end - photo->at < 4 || photo->at[0] != 0xff) return 0;
        int marker = photo->at[1], length = word(photo->at + 2);
        if (length < 2 || photo->end - photo->at < 2 + length) return 0;
        const uint8_t *at = photo->at + 4, *end = photo->at + 2 + length;
        int good = 1;
        photo->at = end;
        switch (marker) {
            case DQT: good = read_quantizers(photo, at, end); break;
            case DHT: good = read_codes(photo, at, end); break;
            case SOF0: case SOF1: good = read_frame(photo, at, end); break;
            case DRI: good = end - at == 2; if (good) photo->restart = word(at); break;
            case SOS: return read_scan(photo, at, end) && (photo->count == 1 || is_ycc(photo));
            case APP0: if (end - at >= 14 && !memcmp(at, "JFIF", 5)) photo->jfif = 1; break;
            case APP14: if (end - at >= 12 && !memcmp(at, "Adobe", 5)) photo->adobe = at[11]; break;
            default: good = marker == COM || (marker >= APP0 && marker <= APP15);
        }
        if (!good) return 0;
    }
}

/* ---- bits ---- */

/* Takes the bits up to the next marker, which it gives; 0 where the file ends before one. */
static int take_interval(Photo *photo) {
    uint8_t *to = photo->interval;
    for (int marker = 0; !marker;) {
        const uint8_t *mark = memchr(photo->at, 0xff, (size_t)(photo->end - photo->at));
        if (!mark || photo->end - mark < 2) return 0;
        memcpy(to, photo->at, (size_t)(mark - photo->at));
        to += mark - photo->at;
        marker = mark[1];
        if (!marker) *to++ = 0xff; /* a zero behind it: no marker, but a byte of the picture */
        photo->at = mark + 2;
    }
    memset(to, 0, PADDING);
    photo->interval_end = to;
    photo->bits = (Bits){.next = photo->interval};
    return photo->at[-1];
}

/* Makes at least 56 bits right. */
static inline void refill(Bits *bits) {
    uint64_t more;
    memcpy(&more, bits->next, sizeof more);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    more = __builtin_bswap64(more);
#endif
    bits->window |= more >> bits->have;
    bits->next += (63 - bits->have) >> 3;
    bits->have |= 56;
}

/* Only the six lower bits of `count` count: it may be a step as it stands in the table. */
static inline void drop(Bits *bits, unsigned count) {
    bits->window <<= count & 63;
    bits->have -= count & 63;
}

/* Of an interval's bits, those that have not been used; negative when the padding was. */
static inline int64_t unused(const Photo *photo) {
    return (photo->interval_end - photo->bits.next) * 8 + (int64_t)photo->bits.have;
}

/* The value of `size` left-aligned bits (T.81, F.2.2.1): a leading zero makes it negative. */
static inline int32_t value_of(uint64_t bits, unsigned size) {
    int32_t value = (int32_t)(bits >> 1 >> (63 - size)), least = 1 - (1 << size);
    return value + (bits >> 63 ? 0 : least);
}

/* Reads a block's first coefficient, dequantized; false where there is none or it is too far out. */
static inline int read_first(const Photo *photo, Component *component, Bits *bits, int32_t *first) {
    refill(bits);
    unsigned found = find_symbol(photo->dc_codes + component->dc_code, bits->window), size = found >> 8;
    if (!found) return 0;
    drop(bits, found & 255);
    component->dc += value_of(bits->window, size);
    drop(bits, size);
    *first = component->dc * photo->quantizers[component->quantizer][0];
    return component->dc >= -FAR && component->dc <= FAR && *first >= -FAR && *first <= FAR;
}

/* Passes the 63 others; false where they make no sense. */
static inline int pass_others(const Code *code, Bits *bits) {
    for (unsigned passed = 0, after = 0;;) {
        refill(bits);
        unsigned step = 0;
        for (int steps = 56 / STEP_BITS; steps; steps--) {
            step = code->step[bits->window >> (64 - STEP_BITS)];
            after = passed + (step >> 6);
            if (after >= BLOCK - 1) break;
            drop(bits, step);
            passed = after;
        }
        if (after < BLOCK - 1) continue;
        if (after == BLOCK - 1 || (after >= ENDS && after < ENDS + BLOCK - 1)) {
            drop(bits, step);
            return 1;
        }
        /* A coefficient longer than a step, a step that goes on into the next block, or nonsense: one by itself. */
        refill(bits);
        unsigned found = find_symbol(code, bits->window);
        if (is_odd(found)) return 0;
        drop(bits, bits_of(found));
        if (is_end(found)) return 1;
        passed += run_of(found) + 1;
        if (passed >= BLOCK - 1) return passed == BLOCK - 1;
    }
}

/* ---- samples ---- */

/* Around 128, within 0 to 255; -1 where it is too far out. */
static inline int sample_of(int32_t value) {
    if (value < -FAR_SAMPLE || value > FAR_SAMPLE) return -1;
    value += 128;
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

/* A block as one sample: its mean. */
static inline int read_mean(Photo *photo, Component *component, uint8_t *to) {
    Bits bits = photo->bits;
    int32_t first;
    if (!read_first(photo, component, &bits, &first)) return 0;
    if (!pass_others(photo->ac_codes + component->ac_code, &bits)) return 0;
    photo->bits = bits;
    int sample = sample_of((first + 4) >> 3);
    *to = (uint8_t)sample;
    return sample >= 0;
}

/* Where in a block, row by row, the coefficients in zigzag order belong (T.81, figure 5). */
static const uint8_t PLACES[BLOCK] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48,
    41, 34, 27, 20, 13, 6,  7,  14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23,
    30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

/* Reads the others to where they belong, dequantized; how many there are, or -1 where they make no sense. A block with
none, as colour often is, is left as it was. */
static inline int read_others(const Photo *photo, const Component *component, Bits *bits, int16_t *block) {
    const Code *code = photo->ac_codes + component->ac_code;
    const uint16_t *quantizer = photo->quantizers[component->quantizer];
    int count = 0;
    for (unsigned k = 1; k < BLOCK; k++) {
        refill(bits);
        unsigned found = find_symbol(code, bits->window);
        if (is_odd(found)) return -1;
        drop(bits, found & 255);
        if (is_end(found)) break;
        k += run_of(found);
        if (k >= BLOCK) return -1;
        if (!size_of(found)) continue; /* sixteen zeros */
        int32_t value = value_of(bits->window, size_of(found)) * quantizer[k];
        drop(bits, size_of(found));
        if (value < -FAR || value > FAR) return -1;
        if (!count++) memset(block, 0, BLOCK * sizeof *block);
        block[PLACES[k]] = (int16_t)value;
    }
    return count;
}

/* The means of both halves of eight samples, of their coefficients c0 to c7 (c2, c4 and c6 cancel out), in fixed point
with 13 bits of fraction, as libjpeg's reduced transform has it: the mean of cos((2x + 1) k pi / 16) over x = 0 to 3,
times the square root of 2, is 0.9061, -0.3182, 0.2126 and -0.1802 for k = 1, 3, 5 and 7; all times 4. */
static inline void halves(const int16_t *c, int stride, int shift, int32_t *left, int32_t *right) {
    int32_t even = c[0] * (1 << 15) + (1 << (shift - 1));
    int32_t odd = 29692 * c[stride] - 10426 * c[3 * stride] + 6967 * c[5 * stride] - 5906 * c[7 * stride];
    *left = (even + odd) >> shift;
    *right = (even - odd) >> shift;
}

/* A block as 2 x 2 samples, the means of its quarters. */
static inline int read_quarters(Photo *photo, Component *component, uint8_t *to, int stride) {
    Bits bits = photo->bits;
    static const int USED[] = {0, 1, 3, 5, 7}; /* of each line of coefficients */
    int16_t block[BLOCK], rows[2][8];
    int32_t first, left, right;
    if (!read_first(photo, component, &bits, &first)) return 0;
    int count = read_others(photo, component, &bits, block);
    if (count < 0) return 0;
    photo->bits = bits;
    if (!count) {
        int sample = sample_of((first + 4) >> 3);
        to[0] = to[1] = to[stride] = to[stride + 1] = (uint8_t)sample;
        return sample >= 0;
    }
    block[0] = (int16_t)first;
    for (int i = 0; i < 5; i++) {
        int x = USED[i];
        halves(block + x, 8, 13, &left, &right); /* here the upper and the lower half */
        if (left < -FAR || left > FAR || right < -FAR || right > FAR) return 0;
        rows[0][x] = (int16_t)left;
        rows[1][x] = (int16_t)right;
    }
    for (int y = 0; y < 2; y++) {
        halves(rows[y], 1, 20, &left, &right);
        int a = sample_of(left), b = sample_of(right);
        if (a < 0 || b < 0) return 0;
        to[y * stride] = (uint8_t)a;
        to[y * stride + 1] = (uint8_t)b;
    }
    return 1;
}

/* ---- the picture ---- */

static inline uint8_t limited(int32_t value) { return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value); }

/* RGB of a line of samples (T.871, 7), in fixed point with 16 bits of fraction. */
static void to_rgb(
    uint8_t *restrict to, const uint8_t *restrict y, const uint8_t *restrict cb, const uint8_t *restrict cr, int width
) {
    for (int x = 0; x < width; x++) {
        int32_t blue = cb[x] - 128, red = cr[x] - 128;
        to[3 * x] = limited(y[x] + ((91881 * red + 32768) >> 16));
        to[3 * x + 1] = limited(y[x] + ((32768 - 22554 * blue - 46802 * red) >> 16));
        to[3 * x + 2] = limited(y[x] + ((116130 * blue + 32768) >> 16));
    }
}

/* Reads one unit of blocks to where it stands in the row of units. */
static int read_unit(Photo *photo, int column, int stride) {
    Component *brightness = photo->components;
    int across = brightness->across, down = brightness->down, at = column * across;
    for (int y = 0; y < down; y++)
        for (int x = 0; x < across; x++)
            if (!read_mean(photo, brightness, brightness->samples + y * stride + at + x)) return 0;
    for (int i = 1; i < photo->count; i++) {
        Component *colour = photo->components + i;
        uint8_t *to = colour->samples + at;
        if (colour->quartered) {
            if (!read_quarters(photo, colour, to, stride)) return 0;
            continue;
        }
        if (!read_mean(photo, colour, to)) return 0;
        if (across == 2) to[1] = to[0];
        if (down == 2) to[stride] = to[0];
    }
    return unused(photo) >= 0;
}

/* Reads all units into `pixels`; false where anything is out of place. */
static int read_picture(Photo *photo, uint8_t *pixels, int width, int height) {
    int across = photo->components[0].across, down = photo->components[0].down;
    int columns = (width + across - 1) / across, rows = (height + down - 1) / down;
    int stride = columns * across, marker = 0, turn = 0;
    int64_t left = 0; /* units of this interval */
    size_t line = (size_t)width * (size_t)photo->count;
    for (int row = 0; row < rows; row++) {
        for (int column = 0; column < columns; column++, left--) {
            if (!left) {
                if (row || column) { /* between two intervals: less than a byte is left over, then their marker */
                    if (unused(photo) >= 8 || marker != RST0 + turn) return 0;
                    turn = (turn + 1) & 7;
                }
                marker = take_interval(photo);
                if (!marker) return 0;
                left = photo->restart ? photo->restart : (int64_t)rows * columns;
                for (int i = 0; i < photo->count; i++) photo->components[i].dc = 0;
            }
            if (!read_unit(photo, column, stride)) return 0;
        }
        for (int y = 0; y < down && row * down + y < height; y++) {
            const Component *each = photo->components;
            uint8_t *to = pixels + line * (size_t)(row * down + y);
            int at = y * stride;
            if (photo->count == 1) memcpy(to, each->samples + at, line);
            else to_rgb(to, each[0].samples + at, each[1].samples + at, each[2].samples + at, width);
        }
    }
    return unused(photo) < 8 && marker == EOI;
}

/* The pixels of a photo, to be freed; NULL where it is not the usual one, or memory is short. */
static uint8_t *decode_photo(Photo *photo, int width, int height) {
    if (!read_headers(photo)) return NULL;
    int room = 2 * (width + 1); /* for one row of units of a component */
    uint8_t *pixels = malloc((size_t)width * (size_t)height * (size_t)photo->count);
    uint8_t *samples = malloc(3 * (size_t)room);
    photo->interval = malloc((size_t)(photo->end - photo->at) + PADDING);
    int good = pixels && samples && photo->interval;
    for (int i = 0; good && i < photo->count; i++) {
        Component *component = photo->components + i;
        component->samples = samples + i * room;
        if (!component->quartered) make_steps(photo->ac_codes + component->ac_code);
    }
    good = good && read_picture(photo, pixels, width, height);
    free(photo->interval);
    free(samples);
    if (good) return pixels;
    free(pixels);
    return NULL;
}

PyDoc_STRVAR(DECODE_DOC,
"decode(data, width, height, /)\n--\n\n"
"The pixels of a JPEG of width x height at an eighth of both, rounded up, row by row: RGB, or grey where it is grey.\n"
"None where it is not the usual photo, or not of that size: libjpeg is to decode it.");

static PyObject *decode(PyObject *module, PyObject *arguments) {
    (void)module;
    PyObject *given; /* bytes and nothing else: they cannot change while other threads run */
    char *data;
    Py_ssize_t length;
    int full_width, full_height;
    if (!PyArg_ParseTuple(arguments, "Sii", &given, &full_width, &full_height)) return NULL;
    if (PyBytes_AsStringAndSize(given, &data, &length)) return NULL;
    if (full_width < 1 || full_width > MOST_SIDE || full_height < 1 || full_height > MOST_SIDE) Py_RETURN_NONE;
    int width = (full_width + 7) / 8, height = (full_height + 7) / 8;
    Photo *photo = calloc(1, sizeof *photo);
    if (!photo) return PyErr_NoMemory();
    photo->at = (const uint8_t *)data;
    photo->end = photo->at + length;
    photo->full_width = full_width;
    photo->full_height = full_height;
    uint8_t *pixels;
    int count;
    Py_BEGIN_ALLOW_THREADS
    pixels = decode_photo(photo, width, height);
    count = photo->count;
    free(photo);
    Py_END_ALLOW_THREADS
    if (!pixels) Py_RETURN_NONE;
    PyObject *answer = PyBytes_FromStringAndSize((const char *)pixels, (Py_ssize_t)width * height * count);
    free(pixels);
    return answer;
}

static PyMethodDef METHODS[] = {{"decode", decode, METH_VARARGS, DECODE_DOC}, {NULL, NULL, 0, NULL}};
static PyModuleDef_Slot SLOTS[] = {{0, NULL}};
static struct PyModuleDef MODULE = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_jpeg_eighth",
    .m_doc = "Decodes the usual JPEG at an eighth of its size; see vehclass/jpeg_eighth.py.",
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__jpeg_eighth(void) { return PyModuleDef_Init(&MODULE); }
