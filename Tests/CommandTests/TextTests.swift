// Goal: what is shown is lossless and cannot be taken for something else; points and sizes mean what the manual says.
// Method: pure functions on tables of cases.

import Format
import Glibc
import Testing
import Volume

@testable import daybook

@Suite struct ShownNames {
    @Test(arguments: [
        ("plain name", "plain name"), ("tab\there", "tab\\there"), ("line\nbreak", "line\\nbreak"), ("back\\slash", "back\\\\slash"),
        ("gr\u{fc}n", "gr\u{fc}n"), ("\u{1b}[31m", "\\x1b[31m"), ("a\u{202e}b", "a\\xe2\\x80\\xaeb"), ("\u{7f}", "\\x7f"), ("", ""),
    ])
    func text(name: String, expected: String) { #expect(shown(Array(name.utf8)) == expected) }

    @Test func bytesThatAreNotText() {
        #expect(shown([0x61, 0xff, 0x62]) == "a\\xffb")
        // Overlong, a surrogate, and a sequence cut off.
        #expect(shown([0xc0, 0xaf]) == "\\xc0\\xaf")
        #expect(shown([0xed, 0xa0, 0x80]) == "\\xed\\xa0\\x80")
        #expect(shown([0xe2, 0x82]) == "\\xe2\\x82")
        #expect(shown([0xe2, 0x82, 0xac]) == "\u{20ac}")
    }

    @Test func namesInJSON() {
        var object = JSONObject()
        object.add("plain", bytes: Array("a\"b\\c\n\u{1}\u{20ac}\u{1f600}".utf8))
        object.add("other", bytes: [0x66, 0xff, 0x6f])
        #expect(
            object.closed
                == #"{"plain":"a\"b\\c\n\u0001€😀","other":"f\ufffdo","other_bytes":"Zv9v"}"#)
    }

    @Test(arguments: [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")])
    func base64OfRFC4648(text: String, expected: String) { #expect(base64(Array(text.utf8)) == expected) }

    @Test func dump() {
        #expect(
            hexDump(Array("0123456789abcdefXY\n".utf8), indent: " ")
                == " 00000000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  0123456789abcdef\n"
                + " 00000010  58 59 0a                                         XY.\n")
    }
}

@Suite struct Values {
    @Test(arguments: [
        ("0", 0), ("512", 512), ("1k", 1024), ("64M", 64 << 20), ("20G", 20 << 30), ("20GiB", 20 << 30), ("3T", 3 << 40),
    ])
    func sizes(text: String, expected: Int) { #expect(parseSize(text) == expected) }

    @Test(arguments: ["", "G", "-1", "1.5G", "12Q", "1 G", "99999999999999999999", "9999999999P", "0x10"])
    func noSizes(text: String) { #expect(parseSize(text) == nil) }

    @Test(arguments: [
        (UInt64(0), "0 bytes"), (1023, "1023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (20 << 30, "20 GiB"),
        ((20 << 30) - 1, "19.9 GiB"), (.max, "15.9 EiB"),
    ])
    func shownSizes(bytes: UInt64, expected: String) { #expect(sizeText(bytes) == expected) }

    @Test func shownTimes() {
        #expect(Timestamp(nanoseconds: 0).rfc3339 == "1970-01-01T00:00:00.000000000Z")
        #expect(Timestamp(nanoseconds: -1).rfc3339 == "1969-12-31T23:59:59.999999999Z")
        #expect(Timestamp(nanoseconds: 1_767_225_600_123_456_789).rfc3339 == "2026-01-01T00:00:00.123456789Z")
        // Whatever is on disk can be shown.
        #expect(Timestamp(nanoseconds: .max).rfc3339 == "2262-04-11T23:47:16.854775807Z")
        #expect(Timestamp(nanoseconds: .min).rfc3339 == "1677-09-21T00:12:43.145224192Z")
    }

    @Test func shownTimesAreReadAgain() {
        for nanoseconds in [0, 1, 1_767_225_600_123_456_789, -1_500_000_000] as [Int64] {
            let time = Timestamp(nanoseconds: nanoseconds)
            #expect(parseTime(time.rfc3339) == time)
            #expect(parseTime(time.local) == Timestamp(nanoseconds: nanoseconds - (nanoseconds % 1000 + 1000) % 1000))
        }
    }

    @Test func joinedPaths() {
        func path(_ base: String, _ part: String) -> String { String(decoding: joined(base, Array(part.utf8)), as: UTF8.self) }
        #expect(path("/", "") == "/")
        #expect(path("/a/b", "") == "/a/b")
        #expect(path("/a", "c//d/./e") == "/a/c/d/e")
        #expect(path("/a", "/c") == "/c")
        #expect(path("/a", "../../..") == "/")
    }
}

@Suite struct Names {
    @Test func theNameDecides() {
        #expect(Invocation.arguments(["/sbin/mkfs.daybook", "-L", "x", "i"]) == ["mkfs", "-L", "x", "i"])
        #expect(Invocation.arguments(["daybook", "log", "i"]) == ["log", "i"])
        #expect(Invocation.arguments(["fsck.daybook", "-a", "i"]) == ["fsck", "-a", "i"])
        #expect(Invocation.arguments([]) == [])
    }

    @Test func progressDescriptors() {
        func fsck(_ arguments: String...) -> [String] { Invocation.arguments(["fsck.daybook"] + arguments) }
        #expect(fsck("-C", "i") == ["fsck", "--progress=1", "i"])
        #expect(fsck("-C0", "i") == ["fsck", "--progress=0", "i"])
        #expect(fsck("-fC17n", "i") == ["fsck", "-f", "--progress=17", "-n", "i"])
        #expect(fsck("--", "-C") == ["fsck", "--", "-C"])
        #expect(Invocation.arguments(["daybook", "fsck", "-C3", "i"]) == ["fsck", "--progress=3", "i"])
    }
}
