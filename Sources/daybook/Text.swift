// Text: names as they are shown. A name may be any bytes; what a terminal could take for a command, or a reader for
// another name, is escaped, and nothing is lost.

import Glibc

/// The bytes as they appear in a line of text: `\n`, `\\`, `\x80` for what is not printable UTF-8.
func shown(_ bytes: [UInt8]) -> String {
    // Nearly all names need nothing.
    if bytes.allSatisfy({ $0 >= 0x20 && $0 < 0x7f && $0 != 0x5c }) { return String(decoding: bytes, as: UTF8.self) }
    var result = ""
    forEachScalar(bytes) { scalar, raw in
        switch scalar?.value {
        case 0x5c: result += "\\\\"
        case 0x0a: result += "\\n"
        case 0x09: result += "\\t"
        case 0x0d: result += "\\r"
        case .some where isPlain(scalar!): result.unicodeScalars.append(scalar!)
        default: for byte in raw { result += "\\x" + hexByte(byte) }
        }
    }
    return result
}

/// Neither a control nor one of the marks that reorder or hide what is around them.
private func isPlain(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator, .surrogate, .privateUse, .unassigned: false
    default: true
    }
}

func hexByte(_ byte: UInt8) -> String {
    let digits = String(byte, radix: 16)
    return byte < 16 ? "0" + digits : digits
}

/// Calls `body` with each scalar and its bytes; with nil for each byte that belongs to none.
private func forEachScalar(_ bytes: [UInt8], _ body: (Unicode.Scalar?, ArraySlice<UInt8>) -> Void) {
    var at = 0
    while at < bytes.count {
        let rest = bytes[at...]
        var decoder = UTF8()
        var iterator = rest.prefix(4).makeIterator()
        if case .scalarValue(let scalar) = decoder.decode(&iterator) {
            let length = UTF8.width(scalar)
            body(scalar, rest.prefix(length))
            at += length
        } else {
            body(nil, rest.prefix(1))
            at += 1
        }
    }
}

func isUTF8(_ bytes: [UInt8]) -> Bool { String(validating: bytes, as: UTF8.self) != nil }

func base64(_ bytes: [UInt8]) -> String {
    let alphabet = Array("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/".utf8)
    var result: [UInt8] = []
    for start in stride(from: 0, to: bytes.count, by: 3) {
        let group = bytes[start..<min(start + 3, bytes.count)]
        let word = group.reduce(0) { $0 << 8 | Int($1) } << (8 * (3 - group.count))
        for index in 0..<4 {
            result.append(index <= group.count ? alphabet[word >> (18 - 6 * index) & 63] : UInt8(ascii: "="))
        }
    }
    return String(decoding: result, as: UTF8.self)
}

/// `rw-r--r--` is for people who list directories; here the octal form says it shortest: `0644`.
func octal(_ mode: UInt32) -> String {
    let digits = String(mode, radix: 8)
    return String(repeating: "0", count: max(0, 4 - digits.count)) + digits
}

func leftPadded(_ text: String, _ width: Int) -> String {
    String(repeating: " ", count: max(0, width - text.count)) + text
}
func rightPadded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
}

/// `1 record`, `2 records`
func counted(_ number: UInt64, _ noun: String) -> String { "\(number) \(noun)\(number == 1 ? "" : "s")" }

/// Sixteen bytes a line: offset, hexadecimal, text.
func hexDump(_ bytes: [UInt8], indent: String, from offset: Int = 0) -> String {
    var result = ""
    for start in stride(from: 0, to: bytes.count, by: 16) {
        let line = bytes[start..<min(start + 16, bytes.count)]
        let address = String(offset + start, radix: 16)
        result += indent + leftPadded(address, 8).replacing(" ", with: "0") + "  "
        result += rightPadded(line.map(hexByte).joined(separator: " "), 47) + "  "
        result += String(decoding: line.map { (0x20..<0x7f).contains($0) ? $0 : 0x2e }, as: UTF8.self) + "\n"
    }
    return result
}

// MARK: JSON

/// One JSON object, its members in the order in which they were added.
struct JSONObject {
    private(set) var text = "{"

    private mutating func key(_ name: String) {
        if text.utf8.count > 1 { text += "," }
        text += "\"" + name + "\":"
    }
    mutating func add(_ name: String, _ value: String) {
        key(name)
        text += Self.quoted(Array(value.utf8))
    }
    mutating func add(_ name: String, _ value: UInt64) {
        key(name)
        text += String(value)
    }
    mutating func add(_ name: String, _ value: Bool) {
        key(name)
        text += value ? "true" : "false"
    }
    mutating func add(_ name: String, raw value: String) {
        key(name)
        text += value
    }
    mutating func addNull(_ name: String) {
        key(name)
        text += "null"
    }
    mutating func add(_ name: String, _ value: JSONObject) { add(name, raw: value.closed) }
    mutating func add(_ name: String, _ values: [JSONObject]) {
        add(name, raw: "[" + values.map(\.closed).joined(separator: ",") + "]")
    }

    /// Bytes that are usually text. What is not UTF-8 becomes U+FFFD, and NAME_bytes has all of it in base64.
    mutating func add(_ name: String, bytes: [UInt8]) {
        key(name)
        text += Self.quoted(bytes)
        if !isUTF8(bytes) { add(name + "_bytes", base64(bytes)) }
    }

    var closed: String { text + "}" }

    private static func quoted(_ bytes: [UInt8]) -> String {
        if bytes.allSatisfy({ $0 >= 0x20 && $0 < 0x7f && $0 != 0x5c && $0 != 0x22 }) {
            return "\"" + String(decoding: bytes, as: UTF8.self) + "\""
        }
        var result = "\""
        forEachScalar(bytes) { scalar, _ in
            switch scalar?.value {
            case nil: result += "\\ufffd"
            case 0x22: result += "\\\""
            case 0x5c: result += "\\\\"
            case 0x0a: result += "\\n"
            case 0x09: result += "\\t"
            case 0x0d: result += "\\r"
            case .some where isPlain(scalar!): result.unicodeScalars.append(scalar!)
            default:
                for unit in String(scalar!).utf16 {
                    result += "\\u" + leftPadded(String(unit, radix: 16), 4).replacing(" ", with: "0")
                }
            }
        }
        return result + "\""
    }
}
