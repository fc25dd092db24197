// What QuickJS lacks of what every plugin needs: text to UTF-8 and back, as browsers and Node.js have it.
globalThis.TextEncoder ??= class TextEncoder {
  get encoding() {
    return "utf-8";
  }

  encode(text = "") {
    const bytes = [];
    for (const character of String(text)) {
      const code = character.codePointAt(0);
      const lone = code >= 0xd800 && code < 0xe000;
      for (const part of encodeURIComponent(lone ? "\ufffd" : character).matchAll(/%(..)|(.)/gs)) {
        bytes.push(part[1] ? parseInt(part[1], 16) : part[2].charCodeAt(0));
      }
    }
    return Uint8Array.from(bytes);
  }
};

globalThis.TextDecoder ??= class TextDecoder {
  constructor(label = "utf-8", options = {}) {
    if (!/^utf-?8$/i.test(label)) throw new RangeError(`the encoding ${label} is not supported`);
    this.fatal = options.fatal === true;
  }

  get encoding() {
    return "utf-8";
  }

  decode(input = []) {
    const bytes = input instanceof ArrayBuffer ? new Uint8Array(input) : Uint8Array.from(input);
    const text = [];
    for (let at = 0; at < bytes.length; ) {
      const size = this.#size(bytes, at);
      if (size === 0 && this.fatal) throw new TypeError("the bytes are not UTF-8");
      const [first, ...rest] = bytes.subarray(at, at + Math.max(size, 1));
      const high = size === 1 ? first : first & (0x7f >> size);
      const code = rest.reduce((code, byte) => (code << 6) | (byte & 0x3f), high);
      text.push(size === 0 ? "\ufffd" : String.fromCodePoint(code));
      at += Math.max(size, 1);
    }
    return text.join("");
  }

  // How many bytes the character at a place has; 0 if there is none.
  #size(bytes, at) {
    const first = bytes[at];
    if (first < 0x80) return 1;
    const size = first < 0xc2 || first > 0xf4 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    for (let next = 1; next < size; next++) {
      if ((bytes[at + next] & 0xc0) !== 0x80) return 0;
    }
    const second = bytes[at + 1];
    const wrong = (first === 0xe0 && second < 0xa0) || (first === 0xed && second > 0x9f)
      || (first === 0xf0 && second < 0x90) || (first === 0xf4 && second > 0x8f);
    return wrong ? 0 : size;
  }
};
