// Ogg Opus (RFC 3533, RFC 7845) taken apart while it arrives, in pieces of any size.

const FIRST_AUDIO_PACKET = 2;
const END_OF_STREAM = 4;

export class OggOpusDemuxer {
  preSkip = 0;
  // Length of what has arrived so far and, once the last page is there, of the whole, in samples at 48 kHz.
  samples = 0;
  ended = false;
  #rest = new Uint8Array(0);
  #open = [];
  #packets = 0;
  #page = 0;

  // The audio packets that these bytes complete.
  push(bytes) {
    const packets = [];
    let data = join([this.#rest, bytes]);
    for (let size; (size = pageSize(data)) <= data.length; data = data.subarray(size)) {
      this.#readPage(data.subarray(0, size), packets);
    }
    this.#rest = data;
    return packets;
  }

  #readPage(page, packets) {
    const view = new DataView(page.buffer, page.byteOffset, page.length);
    if (view.getUint32(18, true) !== this.#page++) throw new Error("a page of the Ogg stream is missing");
    const lacing = page.subarray(27, 27 + page[26]);
    let at = 27 + page[26];
    for (const length of lacing) {
      this.#open.push(page.subarray(at, at + length));
      at += length;
      if (length < 255) this.#closePacket(packets);
    }
    const granule = Number(view.getBigInt64(6, true));
    if (granule >= 0) this.samples = Math.max(0, granule - this.preSkip);
    this.ended = (page[5] & END_OF_STREAM) !== 0;
  }

  #closePacket(packets) {
    const packet = join(this.#open);
    this.#open = [];
    if (this.#packets === 0) this.preSkip = new DataView(packet.buffer).getUint16(10, true);
    if (this.#packets++ >= FIRST_AUDIO_PACKET) packets.push(packet);
  }
}

// How long an Opus packet sounds, in samples at 48 kHz (RFC 6716, section 3.1).
export function packetSamples(packet) {
  const config = packet[0] >> 3;
  const frame = config < 12 ? [480, 960, 1920, 2880][config & 3]
    : config < 16 ? [480, 960][config & 1]
    : [120, 240, 480, 960][config & 3];
  const code = packet[0] & 3;
  return frame * (code === 0 ? 1 : code === 3 ? packet[1] & 63 : 2);
}

export function join(pieces) {
  const whole = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

function pageSize(data) {
  if (data.length < 27) return Infinity;
  if (String.fromCharCode(...data.subarray(0, 4)) !== "OggS") throw new Error("this is no Ogg stream");
  if (data.length < 27 + data[26]) return Infinity;
  return data.subarray(27, 27 + data[26]).reduce((sum, length) => sum + length, 27 + data[26]);
}
