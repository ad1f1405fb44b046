// Output: standard output, in large pieces. When the reader has gone (`daybook log | head`) the program ends without a
// word, as others do: by SIGPIPE, or here where that is ignored.

import Glibc

final class Output {
    private var buffer: [UInt8] = []

    init() { buffer.reserveCapacity(70_000) }

    func write(_ text: String) throws(CommandError) {
        buffer += text.utf8
        if buffer.count > 65_536 { try flush() }
    }

    func line(_ text: String) throws(CommandError) {
        buffer += text.utf8
        buffer.append(0x0a)
        if buffer.count > 65_536 { try flush() }
    }

    func flush() throws(CommandError) {
        var rest = buffer[...]
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { Glibc.write(1, $0.baseAddress!, $0.count) }
            if count < 0 && errno == EINTR { continue }
            if count < 0 && errno == EPIPE { exit(141) }  // 128 + SIGPIPE
            guard count > 0 else { throw .system("cannot write the output") }
            rest = rest.dropFirst(count)
        }
        buffer.removeAll(keepingCapacity: true)
    }
}
