// SHA256: libcrypto's, for it uses the CPU's instructions.

import CCrypto
public import Memory

public final class SHA256 {
    private let context: OpaquePointer

    public init() {
        context = EVP_MD_CTX_new()!
        start()
    }

    deinit { EVP_MD_CTX_free(context) }

    private func start() {
        // Fails only when libcrypto has been built or configured without SHA-256.
        precondition(EVP_DigestInit_ex(context, EVP_sha256(), nil) == 1, "libcrypto offers no SHA-256")
    }

    public func update(_ bytes: RawBytes) { _ = EVP_DigestUpdate(context, bytes.pointer, bytes.count) }
    public func update(_ bytes: [UInt8]) { bytes.withRawBytes { update($0) } }
    public func update(u8 value: UInt8) { update([value]) }
    public func update(u16 value: UInt16) { updateInteger(value) }
    public func update(u32 value: UInt32) { updateInteger(value) }
    public func update(u64 value: UInt64) { updateInteger(value) }

    private func updateInteger(_ value: some FixedWidthInteger) {
        withUnsafeBytes(of: value.littleEndian) { _ = EVP_DigestUpdate(context, $0.baseAddress, $0.count) }
    }

    /// The hash of everything since the last call, 32 bytes.
    public func finish() -> [UInt8] {
        var hash = [UInt8](repeating: 0, count: 32)
        _ = EVP_DigestFinal_ex(context, &hash, nil)
        start()
        return hash
    }

    public static func hexadecimal(_ hash: [UInt8]) -> String {
        let digits = Array("0123456789abcdef".utf8)
        return String(decoding: hash.flatMap { [digits[Int($0 >> 4)], digits[Int($0 & 15)]] }, as: UTF8.self)
    }
}
