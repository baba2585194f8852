import TurndownService from 'turndown'
import { cut } from '../cut.ts'
import { isPlainCode, untrusted, visible, withoutMarks } from './clean-text.ts'
import { simpleTree } from './simple-html.ts'

/**
 * Text from tickets is written by strangers and read by a model: it is cleaned of what a person would not see, and
 * marked as data where it is shown. Text from the model goes the other way, escaped, as HTML.
 */

const longestHtml = 200_000
/** Beyond these a parser needs seconds: depth costs squared, and unclosed formatting is repeated in every paragraph. */
const deepest = 150
const mostWork = 400_000
/** The converter's patterns need squared time for white space in a row, wherever the tags between it are. */
const longestGap = 1_000

/** What we use of a DOM element; the DOM library is not part of our types. */
type Markup = { getAttribute?(name: string): string | null; hasAttribute?(name: string): boolean }

const converter = new TurndownService({
  headingStyle: 'atx',
  bulletListMarker: '-',
  codeBlockStyle: 'fenced',
  emDelimiter: '_',
  hr: '---',
})
// the model reads the text, nobody renders it: escapes would only be noise
converter.escape = text => text
converter.addRule('image', {
  filter: 'img',
  replacement: (_content, node) => {
    const alt = (node as unknown as Markup).getAttribute?.('alt')?.trim()
    return alt ? `[image: ${alt}]` : '[image]'
  },
})
converter.addRule('link', {
  filter: 'a',
  replacement: (content, node) => {
    const href = (node as unknown as Markup).getAttribute?.('href')?.trim() ?? ''
    if (!/^(https?:|mailto:)/i.test(href)) return content
    const bare = href.replace(/^mailto:/i, '')
    return content.trim() === '' || content.trim() === bare ? bare : `[${content}](${href})`
  },
})
const invisibleElements = new Set(
  'SCRIPT STYLE HEAD TITLE TEMPLATE NOSCRIPT IFRAME OBJECT EMBED SELECT SVG MATH'.split(' '),
)
// The rule added last is asked first: a hidden paragraph is hidden before it is a paragraph.
converter.addRule('hidden', {
  filter: node => invisibleElements.has(node.nodeName.toUpperCase()) || isHidden(node as unknown as Markup),
  replacement: () => '',
})

/** HTML of a ticket as Markdown: without scripts, comments, hidden elements and invisible characters. */
export function htmlToMarkdown(html: string): string {
  const start = cut(html, longestHtml)
  const markdown = /[<&]/.test(start) ? converted(start) : start
  const lines = visible(markdown.replace(/\u00a0/g, ' '))
    .split('\n')
    .map(line => line.trimEnd())
  const spaced = lines.filter((line, index) => line !== '' || lines[index - 1] !== '')
  return `${spaced.join('\n').trim()}${html.length > longestHtml ? '\n\n[the rest of a very long text is left out]' : ''}`
}

function converted(html: string): string {
  if (isCostly(html)) return withoutTags(html)
  try {
    const simple = simpleTree(html)
    return converter.turndown(simple ? (simple as unknown as TurndownService.Node) : html)
  } catch {
    return withoutTags(html)
  }
}

/** Elements that HTML closes by itself, so that their start tags do not nest, and those without content. */
const shallow = new Set(
  'p li td th tr dt dd option br hr img input meta link wbr col area base source track'.split(' '),
)

/** Estimates what parsing costs, without parsing. */
function isCostly(html: string): boolean {
  let depth = 0
  let work = 0
  for (const [, slash, name = ''] of html.matchAll(/<(\/?)([a-z][a-z0-9]*)/gi)) {
    const isShallow = shallow.has(name.toLowerCase())
    if (!isShallow) depth = Math.max(0, depth + (slash ? -1 : 1))
    work += depth + 1
    if (depth > deepest || work > mostWork) return true
  }
  return html.length > longestGap && gap(textOf(html, '')) > longestGap
}

/** Length of the longest run of white space. */
function gap(text: string): number {
  let longest = 0
  let current = 0
  for (const character of text) {
    current = /\s/.test(character) ? current + 1 : 0
    longest = Math.max(longest, current)
  }
  return longest
}

/** The text alone. Cannot tell what was hidden, and says so. */
function withoutTags(html: string): string {
  return `[this HTML is too tangled to clean: hidden text may be in it]\n${textOf(html, ' ').replace(/\s+/g, ' ')}`
}

const entities: Record<string, string> = { lt: '<', gt: '>', amp: '&', quot: '"', nbsp: ' ', ensp: ' ', emsp: ' ' }

/** Everything outside of tags, comments and scripts, in one pass. */
function textOf(html: string, between: string): string {
  const lower = html.toLowerCase()
  const pieces: string[] = []
  let position = 0
  while (position < html.length) {
    const start = html.indexOf('<', position)
    pieces.push(html.slice(position, start < 0 ? html.length : start))
    if (start < 0) break
    const [end, length] = endOf(lower, start)
    position = end < 0 ? html.length : end + length
  }
  return pieces
    .join(between)
    .replace(/&(?:([a-z]{2,4})|#(\d{1,6})|#x([0-9a-f]{1,5}));/gi, (whole, name, decimal, hex) => {
      if (name) return entities[name.toLowerCase()] ?? whole
      return String.fromCodePoint(decimal ? Number(decimal) : Number.parseInt(hex, 16))
    })
}

/** Where the markup that starts here ends, and how long its end is. */
function endOf(lower: string, start: number): [number, number] {
  if (lower.startsWith('<!--', start)) return [lower.indexOf('-->', start + 4), 3]
  for (const name of ['script', 'style']) {
    if (lower.startsWith(`<${name}`, start)) return [lower.indexOf(`</${name}>`, start), name.length + 3]
  }
  return [lower.indexOf('>', start), 1]
}

/** Attributes and styles by which mail hides text from its reader. */
function isHidden(element: Markup): boolean {
  if (element.hasAttribute?.('hidden') || element.getAttribute?.('aria-hidden') === 'true') return true
  const style = element.getAttribute?.('style')?.toLowerCase().replace(/\s+/g, '') ?? ''
  if (style === '') return false
  return (
    /display:none|visibility:(hidden|collapse)|opacity:0(\.0+)?(;|!|$)|font-size:(0|[01](\.\d+)?px|0?\.\d+(em|rem|px|pt))(px|pt|em|rem|%)?(;|!|$)/.test(
      style,
    ) ||
    /(text-indent|left|top|margin-left|margin-top):-\d{3,}/.test(style) ||
    (/(^|;)(max-)?(height|width):0/.test(style) && style.includes('overflow:hidden')) ||
    /clip(-path)?:(rect\(0|inset\((50|100)%)/.test(style) ||
    isInvisibleInk(style)
  )
}

/** Text in the colour of its own background, or white on the page's white. */
function isInvisibleInk(style: string): boolean {
  const ink = colour(/(?:^|;)color:([^;!]+)/.exec(style)?.[1])
  if (ink === undefined) return false
  if (ink === 'transparent') return true
  const paper = colour(/(?:^|;)background(?:-color)?:([^;!]+)/.exec(style)?.[1]) ?? '#ffffff'
  return ink === paper
}

function colour(value: string | undefined): string | undefined {
  if (value === undefined) return undefined
  if (value === 'white' || /^rgba?\(255,255,255/.test(value)) return '#ffffff'
  if (value === 'black' || /^rgba?\(0,0,0(,1)?\)/.test(value)) return '#000000'
  const short = /^#([0-9a-f])([0-9a-f])([0-9a-f])$/.exec(value)
  return short ? `#${short[1]}${short[1]}${short[2]}${short[2]}${short[3]}${short[3]}` : value
}

/** The same of one line whose words stand one space apart; false for the empty text. */
function isPlainLine(text: string): boolean {
  let before = 0x20
  for (let index = 0; index < text.length; index++) {
    const code = text.charCodeAt(index)
    if (!isPlainCode(code) || (code === 0x20 && before === 0x20)) return false
    before = code
  }
  return before !== 0x20
}

/** A stranger's HTML, cleaned and marked. */
export function strangersHtml(html: unknown): string | undefined {
  return typeof html === 'string' && html.trim() !== '' ? untrusted(htmlToMarkdown(html)) || undefined : undefined
}

/** A stranger's single line, such as a subject: cleaned, short, and unable to open or close the mark of data. */
export function strangersLine(text: unknown, longest = 250): string | undefined {
  if (typeof text !== 'string') return undefined
  if (text.length <= longest && isPlainLine(text)) return text
  const plain = /<[a-z!/]/i.test(text) ? htmlToMarkdown(text) : visible(text)
  const line = withoutMarks(plain).replace(/\s+/g, ' ').trim()
  return line === '' ? undefined : line.length > longest ? `${cut(line, longest)}…` : line
}

/**
 * Markdown or plain text of the model as the HTML SDP stores: everything is escaped first, so no markup passes
 * through; paragraphs, line breaks, lists, code, bold and web links are kept (docs/sdp-api.md 18.10).
 */
export function textToHtml(text: string): string {
  const blocks = visible(text)
    .trim()
    .split(/(```[^\n]*\n[\s\S]*?(?:\n```|$))/g)
  return blocks
    .map(block => {
      const code = /^```[^\n]*\n([\s\S]*?)(?:\n```)?$/.exec(block)
      return code ? `<pre>${escapeHtml(code[1] ?? '')}</pre>` : paragraphs(block)
    })
    .join('')
}

function paragraphs(text: string): string {
  return text
    .split(/\n{2,}/)
    .map(part => part.replace(/^\n+|\n+$/g, ''))
    .filter(part => part.trim() !== '')
    .map(paragraph)
    .join('')
}

function paragraph(text: string): string {
  const lines = text.split('\n')
  const isBullet = (line: string) => /^\s*[-*\u2022] +/.test(line)
  const isNumber = (line: string) => /^\s*\d{1,3}[.)] +/.test(line)
  const items = (of: string[]) =>
    of.map(line => `<li>${inline(line.replace(/^\s*(?:[-*\u2022]|\d{1,3}[.)]) +/, ''))}</li>`).join('')
  if (lines.every(isBullet)) return `<ul>${items(lines)}</ul>`
  if (lines.every(isNumber)) return `<ol>${items(lines)}</ol>`
  const firstItem = lines.findIndex(line => isBullet(line) || isNumber(line))
  if (firstItem > 0 && lines.slice(firstItem).every(line => isBullet(line) || isNumber(line))) {
    return paragraph(lines.slice(0, firstItem).join('\n')) + paragraph(lines.slice(firstItem).join('\n'))
  }
  const heading = /^#{1,6} +(.+)$/.exec(text)
  if (heading) return `<p><b>${inline(heading[1] ?? '')}</b></p>`
  return `<p>${lines.map(inline).join('<br>')}</p>`
}

function inline(line: string): string {
  return line
    .split(/(`[^`]+`)/)
    .map(part =>
      part.length > 2 && part.startsWith('`') && part.endsWith('`')
        ? `<code>${escapeHtml(part.slice(1, -1))}</code>`
        : escapeHtml(part)
            .replace(/\*\*([^*]+)\*\*/g, '<b>$1</b>')
            .replace(/(^|[\s(])(https?:\/\/[^\s<>()"']+[^\s<>()"'.,;:!?])/g, '$1<a href="$2">$2</a>'),
    )
    .join('')
}

export function escapeHtml(text: string): string {
  return text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;').replaceAll('"', '&quot;')
}
