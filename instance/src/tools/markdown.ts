import TurndownService from 'turndown'

/**
 * Text from tickets is written by strangers and read by a model: it is cleaned of what a person would not see, and
 * marked as data where it is shown. Text from the model goes the other way, escaped, as HTML.
 */

const longestHtml = 400_000

/** What we use of a DOM element; the DOM library is not part of our types. */
type Markup = { getAttribute?(name: string): string | null; hasAttribute?(name: string): boolean }

const converter = new TurndownService({
  headingStyle: 'atx',
  bulletListMarker: '-',
  codeBlockStyle: 'fenced',
  emDelimiter: '_',
  hr: '---',
})
converter.remove([
  'script',
  'style',
  'head',
  'title',
  'template',
  'noscript',
  'iframe',
  'object',
  'embed',
  'select',
] as never)
converter.remove(node => isHidden(node as unknown as Markup))
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

/** HTML of a ticket as Markdown: without scripts, comments, hidden elements and invisible characters. */
export function htmlToMarkdown(html: string): string {
  const cut = html.slice(0, longestHtml)
  if (!/[<&]/.test(cut)) return visible(cut)
  let markdown: string
  try {
    markdown = converter.turndown(cut)
  } catch {
    // nesting so deep that the parser gives up
    markdown = cut.replace(/<!--[\s\S]*?-->|<(script|style)\b[\s\S]*?<\/\1>|<[^>]*>/gi, ' ')
  }
  return visible(markdown.replace(/\u00a0/g, ' '))
    .replace(/[ \t]+$/gm, '')
    .replace(/\n{3,}/g, '\n\n')
    .trim()
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

/** Drops characters that show nothing: controls, format marks, Unicode tags. Keeps the joiner of emoji (U+200D). */
export function visible(text: string): string {
  return text.replace(/\r\n?/g, '\n').replace(/(?![\n\t\u200d])[\p{Cc}\p{Cf}\u{e0000}-\u{e0fff}]/gu, '')
}

const opening = '<untrusted>'
const closing = '</untrusted>'

/** Marks a stranger's text as data. The text cannot close the mark itself. */
export function untrusted(text: string): string {
  const inner = text.replace(/<(\/?)\s*untrusted\b[^>]*>/gi, '<$1 untrusted >').trim()
  return inner === '' ? '' : `${opening}\n${inner}\n${closing}`
}

/** A stranger's HTML, cleaned and marked. */
export function strangersHtml(html: unknown): string | undefined {
  return typeof html === 'string' && html.trim() !== '' ? untrusted(htmlToMarkdown(html)) || undefined : undefined
}

/** A stranger's single line, such as a subject. */
export function strangersLine(text: unknown, longest = 250): string | undefined {
  if (typeof text !== 'string') return undefined
  const line = visible(text).replace(/\s+/g, ' ').trim()
  return line === '' ? undefined : line.length > longest ? `${line.slice(0, longest)}…` : line
}

/**
 * Markdown or plain text of the model as the HTML SDP stores: everything is escaped first, so no markup passes
 * through; paragraphs, line breaks, lists, code, bold and web links are kept (fact sheet 18.10).
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
  const isBullet = (line: string) => /^\s*[-*•] +/.test(line)
  const isNumber = (line: string) => /^\s*\d{1,3}[.)] +/.test(line)
  const items = (of: string[]) =>
    of.map(line => `<li>${inline(line.replace(/^\s*(?:[-*•]|\d{1,3}[.)]) +/, ''))}</li>`).join('')
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
