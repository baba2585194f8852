/** A path below `/app/<portal>/api/v3`. `template` is the same with `{}` for every value: fit for logs and memos. */
export type SdpPath = { readonly path: string; readonly template: string }

/**
 * Tagged template for SDP paths: each value becomes exactly one encoded segment, so that a value such as
 * `1/../../users` cannot reach another resource.
 *
 * @throws RangeError for an empty value and for `.` and `..`, which URL parsers resolve even when encoded
 */
export function path(strings: TemplateStringsArray, ...values: string[]): SdpPath {
  return {
    path: String.raw({ raw: strings }, ...values.map(segment)),
    template: strings.join('{}'),
  }
}

/** `parent` followed by one literal segment of ours, e.g. an operation name. */
export function child(parent: SdpPath, ...segments: string[]): SdpPath {
  const tail = segments.map(segment).join('/')
  return { path: `${parent.path}/${tail}`, template: `${parent.template}/${tail}` }
}

function segment(value: string): string {
  const trimmed = value.trim()
  if (trimmed === '' || trimmed === '.' || trimmed === '..') {
    throw new RangeError(`"${value}" cannot stand in an SDP path`)
  }
  return encodeStrictly(trimmed)
}

/**
 * Percent-encodes all but unreserved characters (RFC 3986 2.3). SDP's front server answers an HTML 400 when
 * brackets arrive raw (docs/sdp-api.md 1.4), and `encodeURIComponent` alone leaves `!'()*`.
 */
export function encodeStrictly(text: string): string {
  return encodeURIComponent(text).replace(
    /[!'()*]/g,
    character => `%${character.charCodeAt(0).toString(16).toUpperCase()}`,
  )
}
