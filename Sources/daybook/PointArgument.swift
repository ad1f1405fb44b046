// PointArgument: points of history, times and sizes, from text to values and back.
//
//   12345                          a sequence number
//   @1767225600.5                  seconds since 1970
//   2026-01-31[ 12:00[:00[.5]]]    local time
//   2026-01-31T12:00:00+02:00      RFC 3339

import Format
import Glibc
import Volume

/// What a point may look like, for messages.
let pointSyntax = "a sequence number or a time (2026-01-31 [12:00[:00]], RFC 3339, @seconds)"

/// A sequence number, or a time; nil for neither.
func parsePoint(_ text: String) -> Point? {
    if !text.isEmpty && text.allSatisfy({ $0.isASCII && $0.isNumber }) {
        guard let number = UInt64(text) else { return nil }
        return .sequence(SequenceNumber(number))
    }
    return parseTime(text).map { .time($0) }
}

/// The same for the value of an option.
func parsePoint(_ text: String, for option: String) throws(UsageError) -> Point {
    guard let point = parsePoint(text) else { throw UsageError("\(option) \(text): not \(pointSyntax)") }
    return point
}

/// `@seconds[.fraction]` since 1970; `YYYY-MM-DD[ HH:MM[:SS[.fraction]]]` in local time; the same with `T` and an offset
/// (`Z`, `+02:00`), which is RFC 3339. A fraction finer than nanoseconds is cut off.
func parseTime(_ text: String) -> Timestamp? {
    var scanner = Scanner(text)
    if scanner.skip("@") {
        let negative = scanner.skip("-")
        guard let seconds = scanner.number(1...12), let fraction = scanner.fraction(), scanner.isAtEnd else { return nil }
        return timestamp(seconds: negative ? -seconds : seconds, nanoseconds: negative ? -fraction : fraction)
    }
    var parts = tm()
    guard let year = scanner.number(4...4), scanner.skip("-"), let month = scanner.number(2...2), scanner.skip("-"),
        let day = scanner.number(2...2), (1...12).contains(month), (1...31).contains(day)
    else { return nil }
    (parts.tm_year, parts.tm_mon, parts.tm_mday) = (Int32(year - 1900), Int32(month - 1), Int32(day))
    parts.tm_isdst = -1
    guard !scanner.isAtEnd else { return local(&parts, day: day, fraction: 0) }

    guard scanner.skip(" ") || scanner.skip("T") || scanner.skip("t"), let hour = scanner.number(2...2), scanner.skip(":"),
        let minute = scanner.number(2...2), hour < 24, minute < 60
    else { return nil }
    (parts.tm_hour, parts.tm_min) = (Int32(hour), Int32(minute))
    var fraction = 0
    if scanner.skip(":") {
        guard let second = scanner.number(2...2), second <= 60, let parsed = scanner.fraction() else { return nil }
        parts.tm_sec = Int32(second)
        fraction = parsed
    }
    if scanner.isAtEnd { return local(&parts, day: day, fraction: fraction) }

    guard let offset = scanner.zone(), scanner.isAtEnd else { return nil }
    // timegm turns a 31st of February into March, and a leap second into the next minute.
    var day31 = parts
    day31.tm_sec = 0
    _ = timegm(&day31)
    guard Int(day31.tm_mday) == day else { return nil }
    return timestamp(seconds: timegm(&parts) - offset, nanoseconds: fraction)
}

private func local(_ parts: inout tm, day: Int, fraction: Int) -> Timestamp? {
    let seconds = mktime(&parts)
    guard Int(parts.tm_mday) == day else { return nil }
    return timestamp(seconds: seconds, nanoseconds: fraction)
}

private func timestamp(seconds: Int, nanoseconds: Int) -> Timestamp? {
    let (product, high) = Int64(seconds).multipliedReportingOverflow(by: 1_000_000_000)
    let (sum, over) = product.addingReportingOverflow(Int64(nanoseconds))
    return high || over ? nil : Timestamp(nanoseconds: sum)
}

private struct Scanner {
    private var rest: Substring.UTF8View
    init(_ text: String) { rest = Substring(text).utf8 }
    var isAtEnd: Bool { rest.isEmpty }

    mutating func skip(_ character: Unicode.Scalar) -> Bool {
        guard rest.first == UInt8(ascii: character) else { return false }
        rest.removeFirst()
        return true
    }

    mutating func number(_ digits: ClosedRange<Int>) -> Int? {
        var value = 0
        var count = 0
        while count < digits.upperBound, let byte = rest.first, (48...57).contains(byte) {
            value = value * 10 + Int(byte) - 48
            count += 1
            rest.removeFirst()
        }
        return digits.contains(count) ? value : nil
    }

    /// Nanoseconds after a point, zero if there is none; nil for a point without digits.
    mutating func fraction() -> Int? {
        guard skip(".") else { return 0 }
        var value = 0
        var count = 0
        while let byte = rest.first, (48...57).contains(byte) {
            if count < 9 { value = value * 10 + Int(byte) - 48 }
            count += 1
            rest.removeFirst()
        }
        guard count > 0 else { return nil }
        while count < 9 {
            value *= 10
            count += 1
        }
        return value
    }

    /// Seconds east of Greenwich.
    mutating func zone() -> Int? {
        if skip("Z") || skip("z") { return 0 }
        let negative = skip("-")
        guard negative || skip("+"), let hours = number(2...2), hours < 24 else { return nil }
        _ = skip(":")
        guard let minutes = number(2...2), minutes < 60 else { return nil }
        let seconds = hours * 3600 + minutes * 60
        return negative ? -seconds : seconds
    }
}

// MARK: showing times

extension Timestamp {
    /// Seconds, and nanoseconds that are never negative.
    private var parts: (seconds: Int, nanoseconds: Int) {
        let (quotient, remainder) = nanoseconds.quotientAndRemainder(dividingBy: 1_000_000_000)
        return remainder < 0 ? (Int(quotient) - 1, Int(remainder) + 1_000_000_000) : (Int(quotient), Int(remainder))
    }

    private static func date(_ parts: tm, _ separator: String) -> String {
        padded(Int(parts.tm_year) + 1900, 4) + "-" + padded(Int(parts.tm_mon) + 1, 2) + "-" + padded(Int(parts.tm_mday), 2)
            + separator + padded(Int(parts.tm_hour), 2) + ":" + padded(Int(parts.tm_min), 2) + ":" + padded(Int(parts.tm_sec), 2)
    }

    private static func padded(_ value: Int, _ width: Int) -> String {
        let digits = String(value)
        return String(repeating: "0", count: max(0, width - digits.count)) + digits
    }

    /// `2026-01-31T12:00:00.000000000Z`
    var rfc3339: String {
        var broken = tm()
        var seconds = time_t(parts.seconds)
        gmtime_r(&seconds, &broken)
        return Self.date(broken, "T") + "." + Self.padded(parts.nanoseconds, 9) + "Z"
    }

    /// Local time in microseconds, always 26 characters: `2026-01-31 12:00:00.000000`
    var local: String {
        var broken = tm()
        var seconds = time_t(parts.seconds)
        localtime_r(&seconds, &broken)
        return Self.date(broken, " ") + "." + Self.padded(parts.nanoseconds / 1000, 6)
    }

    static var now: Timestamp {
        var now = timespec()
        clock_gettime(CLOCK_REALTIME, &now)
        return Timestamp(nanoseconds: Int64(now.tv_sec) * 1_000_000_000 + Int64(now.tv_nsec))
    }
}

// MARK: sizes

/// Bytes, with an optional suffix K, M, G, T or P, alone or as KiB or KB: all are powers of 1024.
func parseSize(_ text: some StringProtocol) -> Int? {
    let digits = text.prefix { $0.isASCII && $0.isNumber }
    guard let number = Int(digits) else { return nil }
    let shift: Int
    switch text.dropFirst(digits.count).lowercased() {
    case "", "b": shift = 0
    case "k", "kb", "kib": shift = 10
    case "m", "mb", "mib": shift = 20
    case "g", "gb", "gib": shift = 30
    case "t", "tb", "tib": shift = 40
    case "p", "pb", "pib": shift = 50
    default: return nil
    }
    let (product, overflow) = number.multipliedReportingOverflow(by: 1 << shift)
    return overflow ? nil : product
}

/// `20 GiB`, `1.5 MiB`, `512 bytes`: at most one decimal, rounded down.
func sizeText(_ bytes: UInt64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    guard bytes >= 1024 else { return "\(bytes) bytes" }
    var index = 0
    while index + 1 < units.count, bytes >> UInt64(10 * (index + 2)) > 0 { index += 1 }
    let shift = UInt64(10 * (index + 1))
    let tenths = ((bytes & ((1 << shift) - 1)) * 10) >> shift
    return "\(bytes >> shift)" + (tenths == 0 ? "" : ".\(tenths)") + " " + units[index]
}
